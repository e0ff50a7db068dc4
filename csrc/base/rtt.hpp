#pragma once

#include <array>
#include <cstddef>

#include "base/time.hpp"

namespace lah {

inline constexpr Duration kRtoMin = milliseconds(20);
inline constexpr Duration kRtoMax = milliseconds(1500);
inline constexpr Duration kRtoInitial = milliseconds(400);

// Smoothed round-trip time of one peer (RFC 6298). Ambiguous answers, those to a retransmitted
// request, are no samples (Karn's rule); they back off instead. Eight bytes: tables hold many.
class RttEstimator {
public:
  void sample(Duration rtt);
  void back_off();
  bool backed_off() const { return backoff_ > 0; }
  bool known() const { return srtt_us_ != kUnknown; }
  Duration srtt() const { return known() ? srtt_us_ * kMicrosecond : 0; }
  Duration rto() const; // kRtoInitial until the first sample

private:
  static constexpr uint32_t kUnknown = ~uint32_t{0};
  uint32_t srtt_us_ = kUnknown;
  uint32_t variation_us_ : 28 = 0;
  uint32_t backoff_ : 4 = 0;
};

// What a peer never met is expected to need: the 90th percentile of the last 64 first answers, and
// a quarter more. The nearest answer first, so a few of them tell nothing.
class NetworkRtt {
public:
  static constexpr size_t kSamplesMin = 16;
  void sample(Duration rtt);
  Duration rto() const { return rto_; }

private:
  std::array<uint32_t, 64> recent_us_{};
  size_t count_ = 0;
  Duration rto_ = kRtoInitial;
};

} // namespace lah
