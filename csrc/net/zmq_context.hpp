// The ZeroMQ context of a process, its socket options, and ZAP (https://rfc.zeromq.org/spec/27):
// who may connect.
#pragma once

#include <zmq.hpp>

#include "crypto/identity.hpp"
#include "net/net_thread.hpp"
#include "rpc/link.hpp"

namespace lah::net {

// Everything in here is used on the network thread only; construct and destroy it from another one.
class ZmqContext final : public Service {
public:
  explicit ZmqContext(NetThread& thread);
  ~ZmqContext() override;

  zmq::context_t& get() { return context_; }

  void on_ready(int fd, Time now) override;
  void on_timer(Time) override {}
  Time next_deadline() const override { return kNever; }

private:
  void answer();

  NetThread& thread_;
  zmq::context_t context_;
  zmq::socket_t zap_;
};

// Limits, liveness and reconnection, the same on both ends.
void set_common_options(zmq::socket_t& socket);
void set_curve_server(zmq::socket_t& socket, const crypto::Identity& identity);
void set_curve_client(zmq::socket_t& socket, const crypto::Identity& identity,
                      const crypto::ExchangeKey& server);

int descriptor(zmq::socket_t& socket);

// ZMQ_FD is edge-triggered: after every wake-up, send or receive, these must be asked until they
// say no.
struct Ready {
  bool in = false;
  bool out = false;
};
Ready ready(zmq::socket_t& socket);

// One received frame. Its bytes move with small messages, so they are asked for, never kept.
struct Frame final : rpc::ReceivedChunk::Owner {
  zmq::message_t message;
  ByteView bytes() const { return {static_cast<const std::byte*>(message.data()), message.size()}; }
};

// The key of the peer that sent a message, in hex, as ZAP authenticated it; empty without CURVE.
std::string user_id(zmq::message_t& message);

// Receives one whole message of at most `count` frames; further frames are dropped. False if there
// is none.
bool receive(zmq::socket_t& socket, std::vector<std::unique_ptr<Frame>>& frames, size_t count);

// Sends [route][header][chunk]; an empty route or chunk is left out. Chunks with a keeper are not
// copied.
rpc::Sent send(zmq::socket_t& socket, std::string_view route, ByteView header,
               const rpc::Chunk& chunk);

} // namespace lah::net
