// Who gets through to one listener: connections within limits, then keys on its access list.
#pragma once

#include <deque>
#include <functional>

#include "net/connection_guard.hpp"
#include "net/socket_monitor.hpp"
#include "net/zmq_context.hpp"

namespace lah::net {

// Who sent a message: its key in hex as ZAP saw it, empty without CURVE; and its connection now.
struct Sender {
  std::string user;
  int fd = -1;
};
// `frame`: not the routing id, which libzmq 4.3.4 strips of this.
Sender sender_of(Frame& frame);

// Network thread only.
class Admission {
public:
  Admission(ZmqContext& zmq, AccessList access) : zmq_(zmq), access_(std::move(access)) {}
  ~Admission();
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // Before `socket` is bound; and to be closed before it is.
  void open(zmq::socket_t& socket, const crypto::Identity& identity, bool encrypted);
  void close();
  int fd() { return monitor_->fd(); } // readable: call on_events()
  void on_events(Time now, uint16_t listening_port, const std::function<void(int fd)>& closed);

  // Whether to take frames of a peer unknown so far. If its key was denied meanwhile, its
  // connection ends.
  bool permits(Time now, const Sender& sender);
  bool deny(const crypto::ExchangeKey& key) { return access_.deny(key); }
  bool knows(int fd) const { return guard_->serial(fd).has_value(); } // it is open
  void kick(Time now, int fd); // ends this connection, after what was sent has had time to leave
  void on_timer(Time now);
  Time next_deadline() const { return kicks_.empty() ? kNever : kicks_.front().at; }

  struct Counters {
    uint64_t connections = 0;         // now
    uint64_t refused_connections = 0; // one too many
    uint64_t denied = 0;              // handshakes of keys that may not connect
  };
  Counters counters() const;

private:
  struct Kick {
    Time at = 0;
    int fd = -1;
    uint64_t serial = 0;
  };
  void end(int fd) const;

  ZmqContext& zmq_;
  AccessList access_;
  std::string domain_;
  std::optional<ConnectionGuard> guard_;
  std::optional<SocketMonitor> monitor_;
  std::deque<Kick> kicks_;
  uint16_t port_ = 0;
};

} // namespace lah::net
