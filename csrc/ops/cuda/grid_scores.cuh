// Scores of a product grid, read from a token's logits: rows are prefixes (all coordinates but the
// last), columns last coordinates.
#pragma once

#include "ops/cuda/common.cuh"

namespace lah::ops::cuda {

__device__ inline float finite_or_void(float x) {
  return isfinite(x) ? x : -INFINITY;
}

__device__ inline bool is_alive(const int32_t* alive, int expert) {
  return alive == nullptr || (static_cast<uint32_t>(alive[expert / 32]) >> (expert % 32) & 1u) != 0;
}

// Whether any of the experts [first, first + count) is alive.
__device__ inline bool any_alive(const int32_t* alive, int first, int count) {
  if (alive == nullptr)
    return true;
  const int end = first + count;
  for (int word = first / 32; word * 32 < end; ++word) {
    uint32_t bits = static_cast<uint32_t>(alive[word]);
    if (word * 32 < first)
      bits &= ~0u << (first % 32);
    if (word * 32 + 32 > end)
      bits &= ~0u >> (word * 32 + 32 - end);
    if (bits != 0)
      return true;
  }
  return false;
}

struct GridView {
  const Grid& grid;
  const int columns, rows,
      first_column; // first_column: where the last axis starts in a token's logits

  __device__ explicit GridView(const Grid& g)
      : grid(g), columns(static_cast<int>(g.size[g.dims - 1])),
        rows(static_cast<int>(g.experts) / columns),
        first_column(static_cast<int>(g.logits) - columns) {}

  // The left-to-right sum of a prefix's logits. It starts from -0, the only x with x + y == y for
  // every y.
  __device__ float row_score(const float* logits, int row) const {
    float score = -0.0f;
    for (int d = 0, stride = rows; d + 1 < grid.dims; ++d) {
      const int size = static_cast<int>(grid.size[d]);
      stride /= size;
      score += logits[row / stride % size];
      logits += size;
    }
    return score;
  }

  __device__ float score(const float* logits, int expert) const {
    return row_score(logits, expert / columns) + logits[first_column + expert % columns];
  }

  // exp(score - lse) of a usable expert, else 0.
  __device__ float probability(const float* logits, const int32_t* alive, int expert,
                               float lse) const {
    if (!is_alive(alive, expert))
      return 0.0f;
    const float s = score(logits, expert);
    return isfinite(s) ? expf(s - lse) : 0.0f;
  }
};

// logsumexp over usable experts; 0 if there is none
__device__ inline float log_sum_exp(const RouteGridArgs& a, const GridView& view,
                                    const float* logits) {
  const int experts = view.rows * view.columns;
  float largest = -INFINITY;
  for (int e = lane_id(); e < experts; e += kWarp)
    if (is_alive(a.alive, e))
      largest = fmaxf(largest, finite_or_void(view.score(logits, e)));
  largest = warp_max(largest);
  if (largest == -INFINITY)
    return 0.0f;
  float total = 0.0f;
  for (int e = lane_id(); e < experts; e += kWarp)
    total += view.probability(logits, a.alive, e, largest);
  return largest + logf(warp_sum(total));
}

} // namespace lah::ops::cuda
