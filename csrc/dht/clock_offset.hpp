#pragma once

#include <vector>

#include "base/endpoint.hpp"
#include "base/time.hpp"

namespace lah::dht {

// How far this machine's clock is from the network's: the median over peers of (their clock + half
// the round trip - ours). There is no rule about skew: a node whose clock is wrong corrects what it
// signs and what it takes for expired, and works.
//
// One vote for each /16 (IPv6: /32), so a liar needs addresses in many networks; private addresses
// are at hand for nobody far away and count one by one, loopback ones by port. While fewer than
// Limits::kClockVotes have voted, our own clock casts the votes that are missing.
class ClockOffset {
public:
  // A peer at `from`, asked `rtt` ago, answered that its clock stands at `theirs`; ours at `ours`.
  void sample(Time now, const Endpoint& from, WallMs theirs, WallMs ours, Duration rtt);

  // To be added to our clock. Zero for offsets so small that the paths may account for them.
  int64_t ms() const { return ms_; }
  WallMs corrected(WallMs ours) const { return ours + static_cast<WallMs>(ms_); }
  size_t votes() const { return votes_.size(); }

  static constexpr int64_t kTolerance = 1000;             // ms
  static constexpr Duration kLifetime = 1800 * kSecond;   // of a vote
  static constexpr Duration kPause = 10 * kSecond;        // between two samples of one source
  static constexpr Duration kPauseWhenFull = 5 * kSecond; // between any two, once nobody is missing
  static constexpr int64_t kFarthest = int64_t{1} << 53;  // ms; what is beyond counts as this

private:
  using Source = std::array<uint8_t, 18>; // a network, or an address and a port
  struct Vote {
    Source source;
    Time at;
    int64_t offset_ms;
  };
  static Source source_of(const Endpoint& from);
  void update();

  std::vector<Vote> votes_;
  int64_t ms_ = 0;
  Time sampled_at_ = 0;
};

} // namespace lah::dht
