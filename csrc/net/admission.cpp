#include "net/admission.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <filesystem>

namespace lah::net {
namespace {

constexpr Duration kLastWords = 200 * kMillisecond;
constexpr size_t kKicks = 4096;

Endpoint endpoint_of(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address);
    return Endpoint::v4(ntohl(in.sin_addr.s_addr), ntohs(in.sin_port));
  }
  Endpoint out;
  if (address.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(address);
    std::memcpy(out.ip.data(), &in.sin6_addr, out.ip.size());
    out.port = ntohs(in.sin6_port);
  }
  return out;
}

std::optional<Endpoint> end_of(int fd, int (*which)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (which(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return std::nullopt;
  return endpoint_of(address);
}

// Three quarters of what this process may still open: the rest is for its files and its own calls.
size_t affordable_connections() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return Limits::kConnections;
  size_t used = 64;
  std::error_code error;
  const std::filesystem::directory_iterator open("/dev/fd", error);
  if (!error)
    used = static_cast<size_t>(std::distance(begin(open), end(open)));
  const size_t allowed = static_cast<size_t>(limit.rlim_cur);
  const size_t left = allowed > used ? allowed - used : 0;
  return std::clamp<size_t>(left * 3 / 4, 1, Limits::kConnections);
}

} // namespace

Sender sender_of(Frame& frame) {
  return {user_id(frame.message), zmq_msg_get(frame.message.handle(), ZMQ_SRCFD)};
}

Admission::~Admission() {
  close();
}

void Admission::open(zmq::socket_t& socket, const crypto::Identity& identity, bool encrypted) {
  ConnectionLimits limits;
  limits.total = affordable_connections();
  guard_.emplace(limits);
  if (encrypted) {
    domain_ = zmq_.zap().add(access_);
    set_curve_server(socket, identity, domain_);
  }
  monitor_.emplace(zmq_, socket, ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED);
}

void Admission::close() {
  monitor_.reset();
  kicks_.clear();
  if (!domain_.empty())
    zmq_.zap().remove(std::exchange(domain_, {}));
}

void Admission::on_events(Time now, uint16_t listening_port,
                          const std::function<void(int fd)>& closed) {
  port_ = listening_port;
  while (const auto event = monitor_->next()) {
    if (event->kind == ZMQ_EVENT_DISCONNECTED) {
      guard_->closed(event->value);
      closed(event->value);
    } else if (event->kind == ZMQ_EVENT_ACCEPTED) {
      const auto from = end_of(event->value, getpeername); // none: it is over already
      if (!guard_->accepted(now, event->value, from.value_or(Endpoint::v4(INADDR_LOOPBACK, 0))))
        end(event->value);
    }
  }
}

bool Admission::permits(Time now, const Sender& sender) {
  if (!domain_.empty() && !access_.permits(sender.user)) {
    kick(now, sender.fd);
    return false;
  }
  guard_->heard(sender.fd);
  return true;
}

void Admission::kick(Time now, int fd) {
  if (const auto serial = guard_->serial(fd); serial && kicks_.size() < kKicks)
    kicks_.push_back({now + kLastWords, fd, *serial});
}

void Admission::on_timer(Time now) {
  for (; !kicks_.empty() && kicks_.front().at <= now; kicks_.pop_front())
    if (guard_->serial(kicks_.front().fd) == kicks_.front().serial)
      end(kicks_.front().fd);
}

// libzmq owns the descriptor, sees its end and closes it. It may have closed it already and the
// system given its number to something else: only a connection to this port is ended, whoever's.
void Admission::end(int fd) const {
  const auto local = end_of(fd, getsockname);
  if (local && local->port == port_ && end_of(fd, getpeername))
    shutdown(fd, SHUT_RDWR);
}

Admission::Counters Admission::counters() const {
  Counters counters;
  if (guard_) {
    counters.connections = guard_->open();
    counters.refused_connections = guard_->refused();
  }
  counters.denied = zmq_.zap().denied(domain_);
  return counters;
}

} // namespace lah::net
