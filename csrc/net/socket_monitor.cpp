#include "net/socket_monitor.hpp"

#include <cstring>

#include "net/zmq_context.hpp"

namespace lah::net {

SocketMonitor::SocketMonitor(ZmqContext& zmq, zmq::socket_t& socket, int kinds)
    : monitored_(socket.handle()), events_(zmq.get(), zmq::socket_type::pair) {
  const std::string address = "inproc://monitor-" + std::to_string(zmq.next_number());
  events_.set(zmq::sockopt::linger, 0);
  // No limit: libzmq's own thread waits for room while it holds the lock that closing a socket
  // takes.
  events_.set(zmq::sockopt::rcvhwm, 0);
  if (zmq_socket_monitor(monitored_, address.c_str(), kinds) != 0)
    throw zmq::error_t();
  events_.connect(address);
}

SocketMonitor::~SocketMonitor() {
  zmq_socket_monitor(monitored_, nullptr, 0);
  events_.close();
}

int SocketMonitor::fd() {
  return descriptor(events_);
}

std::optional<SocketMonitor::Event> SocketMonitor::next() {
  std::vector<std::unique_ptr<Frame>> frames; // [kind u16, value u32][address]
  if (!ready(events_).in || !receive(events_, frames, 1))
    return std::nullopt;
  const ByteView bytes = frames[0]->bytes();
  uint16_t kind = 0;
  int32_t value = 0;
  if (bytes.size() < sizeof(kind) + sizeof(value))
    return Event{};
  std::memcpy(&kind, bytes.data(), sizeof(kind));
  std::memcpy(&value, bytes.data() + sizeof(kind), sizeof(value));
  return Event{kind, value};
}

} // namespace lah::net
