// What expert calls need of a transport. net/ implements it over ZeroMQ, sim/ over a virtual
// network.
#pragma once

#include <memory>

#include "base/bytes.hpp"
#include "base/time.hpp"

namespace lah::rpc {

// A connection, as the transport numbers them. Never reused within a process.
using PeerId = uint64_t;

// A caller's connection to a peer may have stripes: further connections to the same address, opened
// like the first when something is sent over them.
inline constexpr PeerId kStripeBit = PeerId{1} << 56;
constexpr PeerId stripe_of(PeerId peer, size_t stripe) {
  return peer | kStripeBit * stripe;
}
constexpr PeerId first_connection(PeerId connection) {
  return connection & (kStripeBit - 1);
}

// Bytes to send. With `keep`, the transport may read them until it drops its copy of `keep`, from
// any thread; without, it copies them before send() returns.
struct Chunk {
  ByteView bytes;
  std::shared_ptr<const void> keep;
};

// Bytes received; `bytes` live as long as `owner`.
struct ReceivedChunk {
  struct Owner {
    virtual ~Owner() = default;
  };
  ByteView bytes;
  std::unique_ptr<Owner> owner;
};

enum class Sent { kAccepted, kWouldBlock, kGone };

class Link {
public:
  virtual ~Link() = default;
  // kWouldBlock: nothing was taken, the transport will call on_writable(peer). kGone: the peer will
  // never take it.
  virtual Sent send(PeerId peer, ByteView header, const Chunk& chunk) = 0;
  // Nothing is expected of this peer any more; the next send() may open its connection anew.
  virtual void release(PeerId) {}
  // Ends this connection, with whatever is under way on it; the next send() opens a new one.
  virtual void reset(PeerId) {}
  // Asks whether anything listens at the address of a silent peer. If not, the client hears of it
  // by on_refused().
  virtual void probe(PeerId) {}
  // The authenticated key of the caller at the other end; empty where there is no encryption.
  virtual std::string_view caller(PeerId) const { return {}; }
};

} // namespace lah::rpc
