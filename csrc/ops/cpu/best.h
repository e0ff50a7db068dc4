// The k best of a token's scores.
#pragma once

#include "ops/cpu/grid_scores.h"

namespace lah::ops::cpu {

template <class real> struct Scored {
  real score;
  int64_t id;
};

// Takes the values of an array from best to worst, ties by position: one maximum per block of
// kLanes is kept, and only the block that lost its best is read again.
template <class real> class Tournament {
public:
  explicit Tournament(int64_t capacity) : best_(padded(padded(capacity) / kLanes), kVoid<real>) {}

  LAH_INLINE void start(real* values, int64_t count) {
    values_ = values;
    blocks_ = padded(count) / kLanes;
    for (int64_t b = 0; b < blocks_; ++b)
      best_[b] = block_max(b);
  }

  // The best value that is left, which is removed; void when none is.
  LAH_INLINE Scored<real> pop() {
    real best = lanes_max(&best_[0]);
    for (int64_t b = kLanes; b < blocks_; b += kLanes)
      best = std::max(best, lanes_max(&best_[b]));
    if (best == kVoid<real>)
      return {best, -1};
    const int64_t block = find(best_.data(), best);
    const int64_t at = block * kLanes + find(values_ + block * kLanes, best);
    values_[at] = kVoid<real>;
    best_[block] = block_max(block);
    return {best, at};
  }

private:
  // Where the greatest value, which is there, comes first.
  LAH_INLINE static int64_t find(const real* values, real greatest) {
    for (int64_t first = 0;; first += kLanes)
      if (const uint32_t at = lanes_reaching(values + first, real{0}, greatest); at != 0)
        return first + std::countr_zero(at);
  }

  LAH_INLINE real block_max(int64_t block) const { return lanes_max(&values_[block * kLanes]); }

  real* values_ = nullptr;
  int64_t blocks_ = 0;
  Array<real> best_; // padded with void
};

// The k best of what was offered, by (score descending, id ascending).
template <class real> class Best {
public:
  explicit Best(int64_t k) : k_(k) { clear(); }

  LAH_INLINE void clear() {
    for (int64_t j = 0; j < k_; ++j)
      entry_[j] = {kVoid<real>, -1};
  }
  LAH_INLINE int64_t last() const { return k_ - 1; }
  LAH_INLINE real worst() const { return entry_[k_ - 1].score; }
  LAH_INLINE void offer(real score, int64_t id) {
    if (!before(score, id, entry_[k_ - 1]))
      return;
    int64_t j = k_ - 1;
    for (; j > 0 && before(score, id, entry_[j - 1]); --j)
      entry_[j] = entry_[j - 1];
    entry_[j] = {score, id};
  }
  LAH_INLINE int64_t id(int64_t j) const { return entry_[j].id; }

private:
  LAH_INLINE static bool before(real score, int64_t id, const Scored<real>& other) {
    return score > other.score || (score == other.score && id < other.id);
  }

  const int64_t k_;
  Scored<real> entry_[kMaxChoices];
};

} // namespace lah::ops::cpu
