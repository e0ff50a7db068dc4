// What libzmq tells about the connections of one socket.
#pragma once

#include <optional>
#include <zmq.hpp>

namespace lah::net {

class ZmqContext;

// Network thread only; goes before its socket does.
class SocketMonitor {
public:
  struct Event {
    int kind = 0;  // ZMQ_EVENT_...
    int value = 0; // mostly a descriptor
  };

  // Only events of these kinds are told; none of them may be one that a peer can cause at will
  // without a connection of its own.
  SocketMonitor(ZmqContext& zmq, zmq::socket_t& socket, int kinds);
  ~SocketMonitor();
  SocketMonitor(const SocketMonitor&) = delete;
  SocketMonitor& operator=(const SocketMonitor&) = delete;

  int fd();
  std::optional<Event> next();

private:
  void* monitored_;
  zmq::socket_t events_;
};

} // namespace lah::net
