#include "net/zap.hpp"

#include "net/zmq_context.hpp"

namespace lah::net {
namespace {
constexpr const char* kEndpoint = "inproc://zeromq.zap.01"; // the name that libzmq asks
constexpr size_t kRequestFrames = 7; // version, id, domain, address, routing id, mechanism, key
} // namespace

Zap::Zap(NetThread& thread, zmq::context_t& context) : thread_(thread) {
  thread_.run_and_wait([this, &context] {
    socket_ = zmq::socket_t(context, zmq::socket_type::rep);
    socket_.set(zmq::sockopt::linger, 0);
    socket_.bind(kEndpoint);
    thread_.add(*this);
    thread_.watch(descriptor(socket_), *this);
  });
}

Zap::~Zap() {
  thread_.run_and_wait([this] {
    thread_.remove(*this);
    socket_.close();
  });
}

std::string Zap::add(const AccessList& list) {
  const std::string domain = "lah-" + std::to_string(next_domain_++);
  domains_[domain].list = &list;
  return domain;
}

void Zap::remove(const std::string& domain) {
  domains_.erase(domain);
}

uint64_t Zap::denied(const std::string& domain) const {
  const auto found = domains_.find(domain);
  return found == domains_.end() ? 0 : found->second.denied;
}

void Zap::on_ready(int, Time) {
  while (ready(socket_).in)
    answer();
}

// The User-Id that a permitted peer's messages carry from here on is its key: routing ids are the
// peer's own choice and say nothing.
void Zap::answer() {
  std::vector<std::unique_ptr<Frame>> request;
  if (!receive(socket_, request, kRequestFrames))
    return;
  std::string status = "400";
  std::string reason = "CURVE is required"; // NULL connections to a CURVE listener end up here
  std::string user;
  const bool complete = request.size() == kRequestFrames &&
                        as_text(request[5]->bytes()) == "CURVE" &&
                        request[6]->bytes().size() == crypto::ExchangeKey{}.size();
  if (complete) {
    const std::string key = to_hex(request[6]->bytes());
    const auto domain = domains_.find(std::string(as_text(request[2]->bytes())));
    const bool permitted = domain != domains_.end() && domain->second.list->permits(key);
    if (domain != domains_.end() && !permitted)
      ++domain->second.denied;
    status = permitted ? "200" : "400";
    reason = permitted ? "OK" : "not on the access list";
    user = permitted ? key : "";
  }
  const std::string id = request.size() > 1 ? std::string(as_text(request[1]->bytes())) : "";
  const std::array<std::string, 6> reply{"1.0", id, status, reason, user, ""};
  for (size_t i = 0; i < reply.size(); ++i)
    socket_.send(zmq::buffer(reply[i]),
                 i + 1 < reply.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
}

} // namespace lah::net
