#include "ops/cuda/grid_scores.cuh"

namespace lah::ops::cuda {
namespace {

// One logit of one token: coordinate `at` of axis `axis`, which expert e has if e / after % size ==
// at.
struct Coordinate {
  int size, after, at;

  __device__ Coordinate(const Grid& grid, int position)
      : size(0), after(static_cast<int>(grid.experts)), at(position) {
    for (int d = 0; d < grid.dims; ++d) {
      size = static_cast<int>(grid.size[d]);
      after /= size;
      if (at < size)
        return;
      at -= size;
    }
  }
};

// What lse and stats send to this logit: q = p (d_lse + (d_p - <p, d_p>) / tokens) of every expert
// that has the coordinate.
__device__ float dense_gradient(const RouteBackwardArgs& a, int64_t token, const GridView& view,
                                const Coordinate& where, float mean) {
  const float* logits = static_cast<const float*>(a.logits) + token * a.grid.logits;
  const float* d_mean =
      a.grad_stats != nullptr ? static_cast<const float*>(a.grad_stats) + a.grid.experts : nullptr;
  const float lse = static_cast<const float*>(a.lse)[token];
  const float d_lse = a.grad_lse != nullptr ? static_cast<const float*>(a.grad_lse)[token] : 0.0f;
  const float per_token = 1.0f / static_cast<float>(a.tokens);
  float total = 0.0f;
  const int block = where.size * where.after;
  for (int first = where.at * where.after; first < a.grid.experts; first += block) {
    for (int e = first; e < first + where.after; ++e) {
      const float slope = d_lse + (d_mean != nullptr ? (d_mean[e] - mean) * per_token : 0.0f);
      total += view.probability(logits, a.alive, e, lse) * slope;
    }
  }
  return total;
}

// <p, d_p> of a token: a softmax couples all its experts. By a block.
__device__ float mean_gradient(const RouteBackwardArgs& a, int64_t token, const GridView& view) {
  const float* logits = static_cast<const float*>(a.logits) + token * a.grid.logits;
  const float* d_mean = static_cast<const float*>(a.grad_stats) + a.grid.experts;
  const float lse = static_cast<const float*>(a.lse)[token];
  float total = 0.0f;
  for (int e = static_cast<int>(threadIdx.x); e < a.grid.experts; e += kThreads)
    total += view.probability(logits, a.alive, e, lse) * d_mean[e];
  return block_sum(total);
}

// A block a token, a thread a logit: each adds what reaches it, in the order of the choices.
__global__ void __launch_bounds__(kThreads) grad_kernel(RouteBackwardArgs a) {
  const int64_t token = blockIdx.x;
  const GridView view(a.grid);
  const float mean = a.grad_stats != nullptr ? mean_gradient(a, token, view) : 0.0f;
  for (int at = static_cast<int>(threadIdx.x); at < a.grid.logits; at += kThreads) {
    const Coordinate where(a.grid, at);
    float total = 0.0f;
    for (int64_t j = token * a.choices; a.grad_score != nullptr && j < (token + 1) * a.choices;
         ++j) {
      const int expert = a.index[j];
      if (expert >= 0 && expert < a.grid.experts && expert / where.after % where.size == where.at)
        total += static_cast<const float*>(a.grad_score)[j];
    }
    if (a.grad_lse != nullptr || a.grad_stats != nullptr)
      total += dense_gradient(a, token, view, where, mean);
    static_cast<float*>(a.grad_logits)[token * a.grid.logits + at] = total;
  }
}

} // namespace

const char* route_backward(const RouteBackwardArgs& a, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.tokens == 0)
    return nullptr;
  grad_kernel<<<static_cast<unsigned>(a.tokens), kThreads, 0, stream>>>(a);
  return launch_error();
}

} // namespace lah::ops::cuda
