#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "base/endpoint.hpp"
#include "base/limits.hpp"
#include "base/rng.hpp"
#include "base/token_bucket.hpp"

namespace lah::dht {

// Decides, before any cryptography, whether a packet of a key never met may cost some. A signature
// or a key agreement takes 20 to 70 us, so ten thousand fresh keys a second would fill a core. An
// address (of strangers: its subnet) gets so many a second, and all together get so many.
//
// Bounded: an address has two of a fixed number of buckets, and a token is taken while either has
// one; others that share one of them do not shut it out.
class NewcomerGate {
public:
  explicit NewcomerGate(Rng& rng) : seed_(rng.u64() | 1) {}
  bool admit(Time now, const Endpoint& from);

  static constexpr Rate kAll{Limits::kNewcomersPerSecond, Limits::kNewcomersBurst};
  // Of one machine or private network whose nodes may all start at once.
  static constexpr Rate kLocal{Limits::kLocalNewcomersPerSecond, Limits::kNewcomersBurst};
  static constexpr Rate kSubnet{Limits::kSubnetNewcomersPerSecond, Limits::kSubnetNewcomersBurst};

private:
  static constexpr size_t kRow = 512;

  uint64_t seed_;
  TokenBucket all_;
  std::vector<TokenBucket> buckets_; // two rows; none before the first newcomer
};

// Packets of newcomers, a few at each turn of the network thread: peers already known are answered
// in between.
class Newcomers {
public:
  struct Packet {
    Endpoint from;
    Buffer bytes;
  };

  explicit Newcomers(Rng& rng) : gate_(rng) {}

  // True: look at it now. False: it waits for its turn, or is dropped.
  bool admit(Time now, const Endpoint& from, ByteView bytes);
  // A turn begins: these are due, oldest first.
  std::vector<Packet> take_due();
  bool waiting() const { return !waiting_.empty(); }
  uint64_t refused() const { return refused_; }

private:
  NewcomerGate gate_;
  std::deque<Packet> waiting_;
  Time turn_ = 0;
  size_t admitted_ = 0; // in this turn
  uint64_t refused_ = 0;
};

} // namespace lah::dht
