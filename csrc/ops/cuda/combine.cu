#include "ops/cuda/common.cuh"
#include "ops/cuda/rows.cuh"

namespace lah::ops::cuda {
namespace {

// What the first warp of a block finds out about its token, for all its threads. Choices that are
// not live are left out.
struct Choices {
  int64_t row[kMaxChoices];
  float weight[kMaxChoices];
  int count;
};

// The weight of this lane's choice among the live ones of the warp; 0 if it is not live.
__device__ float normalize_score(Normalize mode, bool live, float score) {
  if (mode == Normalize::ones)
    return live ? 1.0f : 0.0f;
  if (mode == Normalize::none)
    return live ? score : 0.0f;
  float value = live ? score : 0.0f;
  if (mode == Normalize::softmax) {
    const float largest = warp_max(live ? score : -INFINITY);
    value = live ? expf(score - largest) : 0.0f;
  }
  const float total = warp_sum(value);
  return live && total != 0.0f ? value / total : 0.0f;
}

// Called by the first warp, lane j for choice j.
__device__ void find_choices(const CombineArgs& a, int64_t token, Choices& choices) {
  const int j = lane_id();
  const int64_t assignment = token * a.plan.choices + j;
  const bool valid = j < a.plan.choices;
  const int64_t row = valid ? live_row(a.plan, assignment) : -1;
  const float score =
      row >= 0 && a.score != nullptr ? static_cast<const float*>(a.score)[assignment] : 0.0f;
  const float weight = normalize_score(a.normalize, row >= 0, score);
  if (valid && a.weight != nullptr)
    static_cast<float*>(a.weight)[assignment] = weight;
  const unsigned live = __ballot_sync(kAllLanes, row >= 0);
  if (row >= 0) {
    const int slot = __popc(live & ((1u << j) - 1));
    choices.row[slot] = row;
    choices.weight[slot] = weight;
  }
  if (j == 0)
    choices.count = __popc(live);
}

// A block a token. The loads of all choices are independent; sums are in the order of the choices.
template <class scalar, int n>
__global__ void __launch_bounds__(kThreads) combine_kernel(CombineArgs a) {
  using Block = Vector<scalar, n>;
  const int64_t token = blockIdx.x, width = a.hidden / n;
  __shared__ Choices choices;
  if (warp_of_block() == 0)
    find_choices(a, token, choices);
  __syncthreads();
  const auto* rows = static_cast<const Block*>(a.rows);
  const auto* residual = static_cast<const Block*>(a.residual);
  for (int64_t h = threadIdx.x; h < width; h += kThreads) {
    float sum[n] = {};
#pragma unroll 4
    for (int c = 0; c < choices.count; ++c) {
      const Block y = rows[choices.row[c] * width + h];
#pragma unroll
      for (int i = 0; i < n; ++i)
        sum[i] += choices.weight[c] * widen(y.element[i]);
    }
    if (residual != nullptr) {
      const Block y = residual[token * width + h];
#pragma unroll
      for (int i = 0; i < n; ++i)
        sum[i] += widen(y.element[i]);
    }
    Block out;
#pragma unroll
    for (int i = 0; i < n; ++i)
      out.element[i] = narrow<scalar>(sum[i]);
    static_cast<Block*>(a.out)[token * width + h] = out;
  }
}

// The gradient of this lane's score from dot = <g, row>; see combine_backward in reference.py.
__device__ float score_gradient(Normalize mode, bool live, float dot, float weight, float score) {
  const float mean = warp_sum(live ? weight * dot : 0.0f);
  if (mode == Normalize::softmax)
    return live ? weight * (dot - mean) : 0.0f;
  const float total = warp_sum(live ? score : 0.0f);
  if (mode == Normalize::sum)
    return live && total != 0.0f ? (dot - mean) / total : 0.0f;
  return live ? dot : 0.0f;
}

// A warp: zeros in a row that was not ok, and so was not read.
template <class Block> __device__ void clear_row(Block* row, int64_t width) {
  for (int64_t h = lane_id(); h < width; h += kWarp)
    row[h] = Block{};
}

// A block a token, a warp a choice: the warp reads its row once, writes the row's gradient, and
// keeps the dot product.
template <class scalar, int n>
__global__ void __launch_bounds__(kThreads) combine_backward_kernel(CombineBackwardArgs a) {
  using Block = Vector<scalar, n>;
  const int64_t token = blockIdx.x, width = a.hidden / n, first = token * a.plan.choices;
  auto* grad_rows = static_cast<Block*>(a.grad_rows);
  if (token >= a.plan.tokens)
    return clear_tail(a.plan, grad_rows, width, nullptr);
  const auto* weight = static_cast<const float*>(a.weight);
  __shared__ float dot[kMaxChoices];
  const Block* g = static_cast<const Block*>(a.grad) + token * width;
  for (int j = warp_of_block(); j < a.plan.choices; j += kThreads / kWarp) {
    const int64_t row = row_of(a.plan, first + j);
    if (row < 0)
      continue; // the same for the whole warp
    if (!is_ok(a.plan, row)) {
      clear_row(grad_rows + row * width, width);
      continue;
    }
    const float w = weight[first + j];
    const Block* y = static_cast<const Block*>(a.rows) + row * width;
    Block* grad_row = grad_rows + row * width;
    float sum = 0.0f;
    for (int64_t h = lane_id(); h < width; h += kWarp) {
      const Block gh = g[h], yh = y[h];
      Block out;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        sum += widen(gh.element[i]) * widen(yh.element[i]);
        out.element[i] = narrow<scalar>(w * widen(gh.element[i]));
      }
      grad_row[h] = out;
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) {
      dot[j] = sum;
      if (!is_packed(a.plan))
        a.source[row] = static_cast<int32_t>(first + j);
    }
  }
  __syncthreads();
  if (warp_of_block() != 0)
    return;
  const int j = lane_id();
  const bool valid = j < a.plan.choices;
  const bool live = valid && live_row(a.plan, first + j) >= 0;
  const float score = live ? static_cast<const float*>(a.score)[first + j] : 0.0f;
  const float ds = score_gradient(a.normalize, live, live ? dot[j] : 0.0f,
                                  live ? weight[first + j] : 0.0f, score);
  if (valid)
    static_cast<float*>(a.grad_score)[first + j] = ds;
}

} // namespace

const char* combine(const CombineArgs& a, Scalar dtype, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.plan.tokens == 0)
    return nullptr;
  const auto blocks = static_cast<unsigned>(a.plan.tokens);
  return with_vector(
      dtype, a.hidden,
      [&](auto type, auto n) {
        combine_kernel<decltype(type), decltype(n)::value><<<blocks, kThreads, 0, stream>>>(a);
      },
      a.rows, a.out, a.residual);
}

const char* combine_backward(const CombineBackwardArgs& a, Scalar dtype, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  const bool packed = is_packed(a.plan);
  const char* error = nullptr;
  if (!packed && a.plan.rows > 0)
    error = forget_sources(a.source, a.plan.rows, stream);
  if (error == nullptr && a.plan.tokens > 0) {
    const unsigned blocks = blocks_of(a.plan);
    error = with_vector(
        dtype, a.hidden,
        [&](auto type, auto n) {
          combine_backward_kernel<decltype(type), decltype(n)::value>
              <<<blocks, kThreads, 0, stream>>>(a);
        },
        a.rows, a.grad, a.grad_rows);
  }
  if (error != nullptr || packed)
    return error;
  const int64_t row_bytes = a.hidden * (dtype == Scalar::f32 ? 4 : 2);
  return clear_unowned(a.grad_rows, a.source, a.plan.rows, row_bytes, stream);
}

} // namespace lah::ops::cuda
