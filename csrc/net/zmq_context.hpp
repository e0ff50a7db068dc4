// The ZeroMQ context of a process, the options of its sockets, and messages of frames.
#pragma once

#include <zmq.hpp>

#include "crypto/identity.hpp"
#include "net/zap.hpp"
#include "rpc/link.hpp"

namespace lah::net {

// Sockets are used on the network thread only; construct and destroy this from another one.
class ZmqContext {
public:
  explicit ZmqContext(NetThread& thread);

  zmq::context_t& get() { return context_; }
  Zap& zap() { return zap_; }
  uint64_t next_number() { return ++numbers_; } // network thread

private:
  zmq::context_t context_;
  Zap zap_;
  uint64_t numbers_ = 0;
};

// Limits, liveness and reconnection, the same on both ends.
void set_common_options(zmq::socket_t& socket);
void set_curve_server(zmq::socket_t& socket, const crypto::Identity& identity,
                      const std::string& zap_domain);
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

// How much one socket may hand over before timers and the other sockets have their turn.
class Turn {
public:
  bool over() const { return messages_ >= 64 || bytes_ >= 4 * Limits::kChunkBytes; }
  void took(const std::vector<std::unique_ptr<Frame>>& frames) {
    ++messages_;
    for (const auto& frame : frames)
      bytes_ += frame->message.size();
  }

private:
  size_t messages_ = 0;
  size_t bytes_ = 0;
};

// Sends [route][header][chunk]; an empty route or chunk is left out. Chunks with a keeper are not
// copied.
rpc::Sent send(zmq::socket_t& socket, std::string_view route, ByteView header,
               const rpc::Chunk& chunk);

} // namespace lah::net
