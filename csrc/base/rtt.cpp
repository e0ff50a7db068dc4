#include "base/rtt.hpp"

#include <algorithm>

namespace lah {
namespace {
constexpr uint32_t kLongestUs = (1U << 28) - 1; // four minutes

uint32_t to_us(Duration duration) {
  return static_cast<uint32_t>(std::clamp<Duration>(duration / kMicrosecond, 0, kLongestUs));
}
} // namespace

void RttEstimator::sample(Duration rtt) {
  const uint32_t us = to_us(rtt);
  backoff_ = 0;
  if (!known()) {
    srtt_us_ = us;
    variation_us_ = us / 2 & kLongestUs;
    return;
  }
  const uint32_t error = us > srtt_us_ ? us - srtt_us_ : srtt_us_ - us;
  variation_us_ = (3 * uint64_t{variation_us_} + error) / 4 & kLongestUs;
  srtt_us_ = static_cast<uint32_t>((7 * uint64_t{srtt_us_} + us) / 8);
}

void RttEstimator::back_off() {
  backoff_ = std::min(backoff_ + 1U, 6U) & 0xf;
}

Duration RttEstimator::rto() const {
  const Duration base =
      known() ? (srtt_us_ + 4 * Duration{variation_us_}) * kMicrosecond : kRtoInitial;
  return std::clamp(base << backoff_, kRtoMin, kRtoMax);
}

void NetworkRtt::sample(Duration rtt) {
  recent_us_[count_++ % recent_us_.size()] = to_us(rtt);
  // Once the window is full, one sample changes little.
  if (count_ < kSamplesMin || (count_ > recent_us_.size() && count_ % 8 != 0))
    return;
  std::array<uint32_t, 64> sorted = recent_us_;
  const size_t held = std::min(count_, sorted.size());
  const auto rank = static_cast<std::ptrdiff_t>(held * 9 / 10);
  std::nth_element(sorted.begin(), sorted.begin() + rank,
                   sorted.begin() + static_cast<std::ptrdiff_t>(held));
  rto_ = std::clamp(sorted[static_cast<size_t>(rank)] * kMicrosecond * 5 / 4, kRtoMin, kRtoMax);
}

} // namespace lah
