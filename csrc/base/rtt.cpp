#include "base/rtt.hpp"

#include <algorithm>

namespace lah {

void RttEstimator::sample(Duration rtt) {
  backoff_ = 0;
  if (!srtt_) {
    srtt_ = rtt;
    variation_ = rtt / 2;
    return;
  }
  const Duration error = rtt > *srtt_ ? rtt - *srtt_ : *srtt_ - rtt;
  variation_ = (3 * variation_ + error) / 4;
  srtt_ = (7 * *srtt_ + rtt) / 8;
}

void RttEstimator::back_off() {
  backoff_ = std::min(backoff_ + 1, 6);
}

Duration RttEstimator::rto() const {
  const Duration base = srtt_ ? *srtt_ + 4 * variation_ : kRtoInitial;
  return std::clamp(base << backoff_, kRtoMin, kRtoMax);
}

void NetworkRtt::sample(Duration rtt) {
  recent_[count_++ % recent_.size()] = rtt;
}

Duration NetworkRtt::rto() const {
  if (count_ == 0)
    return kRtoInitial;
  std::array<Duration, 64> sorted = recent_;
  const size_t held = std::min(count_, sorted.size());
  const auto rank = static_cast<std::ptrdiff_t>(held * 9 / 10);
  std::nth_element(sorted.begin(), sorted.begin() + rank,
                   sorted.begin() + static_cast<std::ptrdiff_t>(held));
  return std::clamp(sorted[static_cast<size_t>(rank)] * 5 / 4, kRtoMin, kRtoMax);
}

} // namespace lah
