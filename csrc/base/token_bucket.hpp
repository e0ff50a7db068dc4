#pragma once

#include <algorithm>

#include "base/time.hpp"

namespace lah {

struct Rate {
  size_t per_second;
  size_t burst; // at least 1
};

// A token bucket kept as one number, the time when it will be full again (the generic cell rate
// algorithm of ITU-T I.371).
class TokenBucket {
public:
  bool has(Time now, Rate rate) const {
    return std::max(full_at_, now) - now <= interval(rate) * static_cast<Duration>(rate.burst - 1);
  }
  // Only after has().
  void take(Time now, Rate rate) { full_at_ = std::max(full_at_, now) + interval(rate); }

private:
  static Duration interval(Rate rate) { return kSecond / static_cast<Duration>(rate.per_second); }
  Time full_at_ = 0;
};

} // namespace lah
