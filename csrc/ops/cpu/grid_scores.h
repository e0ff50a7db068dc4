// The scores of one token's experts, as rows (prefixes: all coordinates but the last) and columns
// (the last coordinate).
#pragma once

#include <algorithm>
#include <memory>

#include "ops/cpu/simd.h"

namespace lah::ops::cpu {

inline int64_t padded(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

template <class real> constexpr real kVoid = -std::numeric_limits<real>::infinity();

// x, or kVoid if x is NaN or infinite.
template <class real> LAH_INLINE real finite_or_void(real x) {
  return std::fabs(x) <= std::numeric_limits<real>::max() ? x : kVoid<real>;
}

inline bool is_alive(const int32_t* alive, int64_t expert) {
  return alive == nullptr || (static_cast<uint32_t>(alive[expert / 32]) >> (expert % 32) & 1u) != 0;
}

// A fixed array with signed indices, like all sizes here.
template <class real> class Array {
public:
  Array(int64_t size, real value)
      : size_(size), data_(std::make_unique<real[]>(static_cast<size_t>(size))) {
    std::fill_n(data_.get(), size, value);
  }
  LAH_INLINE real& operator[](int64_t i) { return data_.get()[i]; }
  LAH_INLINE const real& operator[](int64_t i) const { return data_.get()[i]; }
  LAH_INLINE real* data() { return data_.get(); }
  LAH_INLINE const real* data() const { return data_.get(); }
  int64_t size() const { return size_; }

private:
  int64_t size_;
  std::unique_ptr<real[]> data_;
};

// logsumexp of an array that is padded with void; 0 if all are void. Partial sums of kPart terms
// keep float32's error small for 64k experts.
template <class real> LAH_INLINE real log_sum_exp(const Array<real>& score) {
  constexpr int64_t kPart = 1024;
  const auto n = score.size();
  real lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l)
    lanes[l] = kVoid<real>;
  for (int64_t e = 0; e < n; e += kLanes)
    for (int64_t l = 0; l < kLanes; ++l)
      lanes[l] = score[e + l] > lanes[l] ? score[e + l] : lanes[l];
  const real largest = lanes_max(lanes);
  if (largest == kVoid<real>)
    return 0;
  double total = 0;
  for (int64_t part = 0; part < n; part += kPart) {
    for (int64_t l = 0; l < kLanes; ++l)
      lanes[l] = 0;
    for (int64_t e = part; e < n && e < part + kPart; e += kLanes)
      for (int64_t l = 0; l < kLanes; ++l)
        lanes[l] += exp_negative(score[e + l] - largest);
    total += fold_sum(lanes);
  }
  return largest + static_cast<real>(std::log(total));
}

// Arrays are padded with void to a multiple of kLanes. Void and dead are -infinity, so that one
// addition masks the dead.
template <class real> struct GridScores {
  const int64_t columns, rows;
  Array<real> row, column; // logits of prefixes and of last coordinates
  Array<real> dead;        // [experts] 0 or -infinity; readable for kLanes beyond the last expert
  Array<real> sum;         // [experts]

  GridScores(const Grid& grid, const int32_t* alive)
      : columns(grid.size[grid.dims - 1]), rows(grid.experts / columns),
        row(padded(rows), kVoid<real>), column(padded(columns), kVoid<real>),
        dead(padded(grid.experts) + kLanes, real{0}), sum(padded(grid.experts), real{0}),
        grid_(grid), dead_row_(rows, kVoid<real>) {
    for (int64_t e = 0, r = 0; r < rows; ++r)
      for (const int64_t end = e + columns; e < end; ++e) {
        dead[e] = is_alive(alive, e) ? real{0} : kVoid<real>;
        dead_row_[r] = std::max(dead_row_[r], dead[e]);
      }
  }

  // Read a token's logits: row[r] is the left-to-right sum of the prefix's logits, void if no
  // expert of it is alive.
  LAH_INLINE void load(const real* logits) {
    row[0] = 0; // may turn -0 into +0, which changes no order
    int64_t prefixes = 1;
    for (int64_t d = 0; d + 1 < grid_.dims; logits += grid_.size[d++]) {
      const int64_t size = grid_.size[d];
      for (int64_t p = prefixes - 1; p >= 0;
           --p) { // from the end, as row[p * size ...] overwrites row[p]
        const real prefix = row[p];
        for (int64_t i = 0; i < size; ++i)
          row[p * size + i] = prefix + logits[i];
      }
      prefixes *= size;
    }
    for (int64_t r = 0; r < rows; ++r)
      row[r] = finite_or_void(row[r]) + dead_row_[r];
    for (int64_t c = 0; c < columns; ++c)
      column[c] = finite_or_void(logits[c]);
  }

  // sum[e] = score of expert e, or void.
  LAH_INLINE void fill_sum() {
    for (int64_t r = 0; r < rows; ++r) {
      const real s = row[r];
      const real* mask = &dead[r * columns];
      real* to = &sum[r * columns];
      for (int64_t c = 0; c < columns; ++c)
        to[c] = finite_or_void(s + column[c]) + mask[c];
    }
    for (int64_t e = grid_.experts; e < padded(grid_.experts); ++e)
      sum[e] = kVoid<real>;
  }

private:
  const Grid grid_;
  Array<real> dead_row_; // [rows] 0 or -infinity
};

} // namespace lah::ops::cpu
