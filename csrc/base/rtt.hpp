#pragma once

#include <array>
#include <optional>

#include "base/time.hpp"

namespace lah {

inline constexpr Duration kRtoMin = milliseconds(20);
inline constexpr Duration kRtoMax = milliseconds(1500);
inline constexpr Duration kRtoInitial = milliseconds(400);

// Smoothed round-trip time of one peer (RFC 6298). Ambiguous answers, those to a retransmitted
// request, are no samples (Karn's rule); they back off instead.
class RttEstimator {
public:
  void sample(Duration rtt);
  void back_off();
  bool known() const { return srtt_.has_value(); }
  Duration srtt() const { return srtt_.value_or(0); }
  Duration rto() const; // kRtoInitial until the first sample

private:
  std::optional<Duration> srtt_;
  Duration variation_ = 0;
  int backoff_ = 0;
};

// What a peer never met is expected to need: the 90th percentile of the last 64 samples of the
// whole network, and a quarter more.
class NetworkRtt {
public:
  void sample(Duration rtt);
  Duration rto() const;

private:
  std::array<Duration, 64> recent_{};
  size_t count_ = 0;
};

} // namespace lah
