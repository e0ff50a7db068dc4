// Time as plain numbers, so that cores which must not own a clock can still reason about it.
#pragma once

#include <cstdint>
#include <limits>

namespace lah {

// Nanoseconds of a monotonic clock; the origin means nothing. `now` is always an argument.
using Time = int64_t;
using Duration = int64_t;

inline constexpr Duration kMicrosecond = 1'000;
inline constexpr Duration kMillisecond = 1'000'000;
inline constexpr Duration kSecond = 1'000'000'000;
inline constexpr Time kNever = std::numeric_limits<Time>::max();

constexpr Duration milliseconds(int64_t count) {
  return count * kMillisecond;
}

// Milliseconds since 1970, for record expiry only. Never compared with Time.
using WallMs = uint64_t;

class Clock {
public:
  virtual ~Clock() = default;
  virtual Time now() const = 0;
  virtual WallMs wall_ms() const = 0;
};

} // namespace lah
