#include "ops/cuda/common.cuh"

namespace lah::ops::cuda {
namespace {

// Without overflow: exp of a large argument is infinite, and its reciprocal zero.
__device__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// A block a row, so that no thread divides to find its row and its weight.
template <class scalar, int n>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(SwigluArgs a) {
  using Block = Vector<scalar, n>;
  const int64_t row = blockIdx.x, width = a.width / n;
  const Block* gate = static_cast<const Block*>(a.x) + row * 2 * width;
  const float w = a.weight != nullptr ? static_cast<const float*>(a.weight)[row] : 1.0f;
  for (int64_t h = threadIdx.x; h < width; h += kThreads) {
    const Block g = gate[h], u = gate[width + h];
    Block out;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float x = widen(g.element[i]);
      out.element[i] = narrow<scalar>(x * sigmoid(x) * widen(u.element[i]) * w);
    }
    static_cast<Block*>(a.out)[row * width + h] = out;
  }
}

// The sum over a block, valid in its first thread; in an order that does not depend on timing.
__device__ float block_sum(float x) {
  __shared__ float of_warp[kThreads / kWarp];
  x = warp_sum(x);
  if (lane_id() == 0)
    of_warp[warp_of_block()] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kThreads / kWarp; ++w)
    sum += of_warp[w];
  return sum;
}

// A block a row: x and grad are read once for all three gradients.
template <class scalar, int n>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(SwigluBackwardArgs a) {
  using Block = Vector<scalar, n>;
  const int64_t row = blockIdx.x, width = a.width / n;
  const Block* gate = static_cast<const Block*>(a.x) + row * 2 * width;
  const Block* grad = static_cast<const Block*>(a.grad) + row * width;
  Block* grad_gate = static_cast<Block*>(a.grad_x) + row * 2 * width;
  const float w = a.weight != nullptr ? static_cast<const float*>(a.weight)[row] : 1.0f;
  float sum = 0.0f;
  for (int64_t h = threadIdx.x; h < width; h += kThreads) {
    const Block gh = gate[h], uh = gate[width + h], dh = grad[h];
    Block out_gate, out_up;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float g = widen(gh.element[i]), u = widen(uh.element[i]), d = widen(dh.element[i]);
      const float s = sigmoid(g);
      const float silu = g * s;
      out_gate.element[i] = narrow<scalar>(d * w * u * (s + silu * (1.0f - s)));
      out_up.element[i] = narrow<scalar>(d * w * silu);
      sum += d * silu * u;
    }
    grad_gate[h] = out_gate;
    grad_gate[width + h] = out_up;
  }
  if (a.grad_weight == nullptr)
    return;
  sum = block_sum(sum);
  if (threadIdx.x == 0)
    static_cast<float*>(a.grad_weight)[row] = sum;
}

} // namespace

const char* swiglu(const SwigluArgs& a, Scalar dtype, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.rows == 0)
    return nullptr;
  const auto blocks = static_cast<unsigned>(a.rows);
  return with_vector(
      dtype, a.width,
      [&](auto type, auto n) {
        swiglu_kernel<decltype(type), decltype(n)::value><<<blocks, kThreads, 0, stream>>>(a);
      },
      a.x, a.out);
}

const char* swiglu_backward(const SwigluBackwardArgs& a, Scalar dtype, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.rows == 0)
    return nullptr;
  const auto blocks = static_cast<unsigned>(a.rows);
  return with_vector(
      dtype, a.width,
      [&](auto type, auto n) {
        swiglu_backward_kernel<decltype(type), decltype(n)::value>
            <<<blocks, kThreads, 0, stream>>>(a);
      },
      a.x, a.grad, a.grad_x);
}

} // namespace lah::ops::cuda
