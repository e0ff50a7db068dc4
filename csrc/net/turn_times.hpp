// How long the turns of a loop took, in a histogram of fixed size: what comes during a turn waits
// for its end.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <utility>
#include <vector>

#include "base/time.hpp"

namespace lah::net {

// One thread adds, any other takes.
class TurnTimes {
public:
  void add(Duration turn) {
    counts_[bucket(static_cast<uint64_t>(turn))].fetch_add(1, std::memory_order_relaxed);
  }

  // (at most this long, how many turns), since the last call.
  std::vector<std::pair<Duration, uint64_t>> take() {
    std::vector<std::pair<Duration, uint64_t>> taken;
    for (size_t i = 0; i < counts_.size(); ++i)
      if (const uint64_t count = counts_[i].exchange(0, std::memory_order_relaxed); count > 0)
        taken.emplace_back(static_cast<Duration>(upper(i)), count);
    return taken;
  }

private:
  // Four buckets an octave, so a bound is at most a quarter above what it bounds.
  static size_t bucket(uint64_t value) {
    if (value < 4)
      return static_cast<size_t>(value);
    const auto octave = static_cast<size_t>(std::bit_width(value)) - 3;
    return octave * 4 + static_cast<size_t>(value >> octave);
  }
  static uint64_t upper(size_t index) {
    if (index < 8)
      return index;
    const size_t octave = index / 4 - 1;
    return ((index - octave * 4 + 1) << octave) - 1;
  }

  std::array<std::atomic<uint64_t>, 252> counts_{};
};

} // namespace lah::net
