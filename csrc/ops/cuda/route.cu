// Exact top-k of one axis: scores or sigmoids, biases, groups; and the gradient through sigmoids.
#include "ops/cuda/best.cuh"
#include "ops/cuda/grid_scores.cuh"
#include "ops/cuda/route_launch.cuh"

namespace lah::ops::cuda {
namespace {

__device__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// A token's logits, minus infinity where dead or not finite.
struct Axis {
  const float* logits;
  const int32_t* alive;
  int experts;

  __device__ float usable(int e) const {
    return is_alive(alive, e) ? finite_or_void(logits[e]) : -INFINITY;
  }
  __device__ float usable_sigmoid(int e) const {
    const float x = usable(e);
    return x == -INFINITY ? 0.0f : sigmoid(x);
  }
};

struct ChooseFromAxis {
  RouteArgs args;

  __device__ Axis axis(int64_t token) const {
    const RouteGridArgs& a = args.axis;
    return {static_cast<const float*>(a.logits) + token * a.grid.experts, a.alive,
            static_cast<int>(a.grid.experts)};
  }

  __device__ float key(const Axis& axis, int e) const {
    float x = axis.usable(e);
    if (x == -INFINITY)
      return x;
    if (args.score == Score::sigmoid)
      x = sigmoid(x);
    return args.bias == nullptr ? x : finite_or_void(x + static_cast<const float*>(args.bias)[e]);
  }

  // The value of a group, in every lane: the sum of its two best keys; void if it has none.
  __device__ float group_value(const Axis& axis, int group, int size) const {
    Best best(2);
    offer(axis, group * size, size, best);
    const float first = __shfl_sync(kAllLanes, best.mine.score, 0);
    const float second = __shfl_sync(kAllLanes, best.mine.score, 1);
    return second == -INFINITY ? first : first + second;
  }

  // A bit for each of the token's best groups; lane g holds the value of group g.
  __device__ unsigned best_groups(const Axis& axis, int size) const {
    const int groups = static_cast<int>(args.groups);
    Scored mine{-INFINITY, lane_id()};
    for (int g = 0; g < groups; ++g) {
      const float value = group_value(axis, g, size);
      if (lane_id() == g)
        mine.score = value;
    }
    int better = 0;
    for (int g = 0; g < groups; ++g)
      better += before(shuffle(mine, g), mine);
    return __ballot_sync(kAllLanes, better < args.top_groups && mine.score != -INFINITY);
  }

  // Offers the experts [first, first + count).
  __device__ void offer(const Axis& axis, int first, int count, Best& best) const {
    for (int start = 0; start < count; start += kWarp) {
      const int at = start + lane_id();
      Scored entry{-INFINITY, first + at};
      if (at < count)
        entry.score = key(axis, entry.id);
      best.offer(entry);
    }
  }

  __device__ Best best_of(const Axis& axis) const {
    Best best(static_cast<int>(args.axis.k));
    if (args.top_groups == args.groups) {
      offer(axis, 0, axis.experts, best);
      return best;
    }
    const int size = axis.experts / static_cast<int>(args.groups);
    for (unsigned kept = best_groups(axis, size); kept != 0; kept &= kept - 1)
      offer(axis, (__ffs(static_cast<int>(kept)) - 1) * size, size, best);
    return best;
  }

  // A warp a token.
  __device__ void choose(int64_t token) const {
    const RouteGridArgs& a = args.axis;
    const Axis x = axis(token);
    write_choices(a, token, best_of(x), [&](int e) {
      return args.score == Score::sigmoid ? sigmoid(x.logits[e]) : x.logits[e];
    });
    if (a.lse == nullptr)
      return;
    const float lse = log_sum_exp(a, GridView(a.grid), x.logits);
    float total = 0.0f;
    if (a.stats != nullptr && args.score == Score::sigmoid) {
      for (int e = lane_id(); e < x.experts; e += kWarp)
        total += x.usable_sigmoid(e);
      total = warp_sum(total);
    }
    if (lane_id() != 0)
      return;
    static_cast<float*>(a.lse)[token] = lse;
    if (a.stats != nullptr && args.score == Score::sigmoid)
      static_cast<float*>(args.affinity)[token] = total;
  }

  __device__ float probability(int64_t token, int expert) const {
    const Axis x = axis(token);
    if (args.score == Score::logit)
      return GridView(args.axis.grid)
          .probability(x.logits, x.alive, expert, static_cast<const float*>(args.axis.lse)[token]);
    const float total = static_cast<const float*>(args.affinity)[token];
    return total > 0.0f ? x.usable_sigmoid(expert) / total : 0.0f;
  }
};

// A block a token; see route_axis_backward in cpu/route.cpp.
__global__ void __launch_bounds__(kThreads) sigmoid_backward_kernel(RouteBackwardArgs a) {
  const int64_t token = blockIdx.x;
  const Axis x{static_cast<const float*>(a.logits) + token * a.grid.experts, a.alive,
               static_cast<int>(a.grid.experts)};
  const auto* d_mean =
      a.grad_stats != nullptr ? static_cast<const float*>(a.grad_stats) + x.experts : nullptr;
  float total = 0.0f, coupling = 0.0f;
  for (int e = static_cast<int>(threadIdx.x); d_mean != nullptr && e < x.experts; e += kThreads) {
    const float s = x.usable_sigmoid(e);
    total += s;
    coupling += s * d_mean[e];
  }
  total = block_sum(total);
  coupling = block_sum(coupling);
  const float share = total > 0.0f ? 1.0f / (total * static_cast<float>(a.tokens)) : 0.0f;
  const float mean = total > 0.0f ? coupling / total : 0.0f;
  const int32_t* index = a.index + token * a.choices;
  for (int e = static_cast<int>(threadIdx.x); e < x.experts; e += kThreads) {
    float grad = d_mean != nullptr ? (d_mean[e] - mean) * share : 0.0f;
    for (int64_t j = 0; a.grad_score != nullptr && j < a.choices; ++j)
      if (index[j] == e)
        grad += static_cast<const float*>(a.grad_score)[token * a.choices + j];
    const float usable = x.usable(e), s = x.usable_sigmoid(e);
    grad *= s * (1.0f - s);
    if (a.grad_lse != nullptr && usable != -INFINITY)
      grad += static_cast<const float*>(a.grad_lse)[token] *
              expf(usable - static_cast<const float*>(a.lse)[token]);
    static_cast<float*>(a.grad_logits)[token * a.grid.experts + e] = grad;
  }
}

} // namespace

const char* route(const RouteArgs& args, void* stream) {
  return route_in_one_launch(ChooseFromAxis{args}, args.axis, stream);
}

const char* route_axis_backward(const RouteBackwardArgs& a, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.tokens == 0)
    return nullptr;
  sigmoid_backward_kernel<<<static_cast<unsigned>(a.tokens), kThreads, 0, stream>>>(a);
  return launch_error();
}

} // namespace lah::ops::cuda
