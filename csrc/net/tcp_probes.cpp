#include "net/tcp_probes.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "net/address.hpp"

namespace lah::net {
namespace {
constexpr Duration kPatience = kSecond; // no answer at all says nothing
}

TcpProbes::~TcpProbes() {
  while (!probes_.empty())
    close(probes_.begin());
}

bool TcpProbes::start(Time now, rpc::PeerId peer, const Endpoint& address) {
  if (std::any_of(probes_.begin(), probes_.end(),
                  [&](const auto& probe) { return probe.second.peer == peer; }))
    return false;
  const bool v6 = !address.is_v4();
  const int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
  if (fd < 0)
    return false;
  fcntl(fd, F_SETFL, O_NONBLOCK);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  sockaddr_storage to{};
  const socklen_t size = to_sockaddr(address, v6, to);
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), size) != 0 && errno != EINPROGRESS) {
    const bool refused = errno == ECONNREFUSED;
    ::close(fd);
    return refused;
  }
  probes_[fd] = {peer, now};
  thread_.watch(fd, owner_); // an error, like the greeting of a listener, makes it readable
  return false;
}

std::optional<rpc::PeerId> TcpProbes::take_refused(int fd) {
  const auto probe = probes_.find(fd);
  if (probe == probes_.end())
    return std::nullopt;
  int error = 0;
  socklen_t size = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  const rpc::PeerId peer = probe->second.peer;
  close(probe);
  return error == ECONNREFUSED ? std::optional(peer) : std::nullopt;
}

void TcpProbes::expire(Time now) {
  for (auto probe = probes_.begin(); probe != probes_.end();) {
    const auto next = std::next(probe);
    if (probe->second.started + kPatience <= now)
      close(probe);
    probe = next;
  }
}

Time TcpProbes::next_deadline() const {
  Time next = kNever;
  for (const auto& [fd, probe] : probes_)
    next = std::min(next, probe.started + kPatience);
  return next;
}

void TcpProbes::close(std::map<int, Probe>::iterator probe) {
  thread_.unwatch(probe->first);
  ::close(probe->first);
  probes_.erase(probe);
}

} // namespace lah::net
