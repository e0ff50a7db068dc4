// What the CUDA kernels share: warps, 16-bit floats, vectors of 16 bytes, launches. No torch
// header: this compiles beside any torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "ops/kernels.h"

namespace lah::ops::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 128; // of a block, unless said otherwise

__device__ inline int lane_id() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ inline int warp_of_block() {
  return static_cast<int>(threadIdx.x) / kWarp;
}

// Butterfly sums and maxima: every lane gets the result, in an order that does not depend on
// timing.
__device__ inline float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// The same of a block's kThreads threads, all of which call it.
__device__ inline float block_sum(float x) {
  __shared__ float part[kThreads / kWarp];
  x = warp_sum(x);
  __syncthreads(); // an earlier sum has been read by all
  if (lane_id() == 0)
    part[warp_of_block()] = x;
  __syncthreads();
  float total = 0.0f;
  for (const float of_warp : part)
    total += of_warp;
  return total;
}

__device__ inline float widen(float x) {
  return x;
}
__device__ inline float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ inline float widen(__half x) {
  return __half2float(x);
}
template <class scalar> __device__ scalar narrow(float x);
template <> __device__ inline float narrow<float>(float x) {
  return x;
}
template <> __device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <> __device__ inline __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

// n elements that are loaded and stored by one instruction of up to 16 bytes.
template <class scalar, int n> struct alignas(n * sizeof(scalar)) Vector { scalar element[n]; };

// The row of assignment i, or -1 if it has none; as in cpu/simd.h, a plan out of range reads as
// void.
__device__ inline int64_t row_of(const Plan& plan, int64_t i) {
  const int64_t expert = plan.index[i], rank = plan.rank[i];
  if (expert < 0 || rank < 0 || expert >= plan.experts)
    return -1;
  const int64_t row = plan.offset[expert] + rank;
  return row < 0 || row >= plan.rows ? -1 : row;
}

__device__ inline bool is_ok(const Plan& plan, int64_t row) {
  return plan.ok == nullptr || plan.ok[row];
}

// The same, or -1 if the row is not ok.
__device__ inline int64_t live_row(const Plan& plan, int64_t i) {
  const int64_t row = row_of(plan, i);
  return row >= 0 && is_ok(plan, row) ? row : -1;
}

inline unsigned blocks_for(int64_t work, int64_t per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

// Null, or why the launch before failed.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline bool aligned(const void* pointer, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Whether rows of `width` elements can be moved by 16 bytes, from and to all of these.
template <class scalar, class... Pointers>
bool vectorizes(int64_t width, const Pointers*... pointers) {
  return width % (16 / static_cast<int64_t>(sizeof(scalar))) == 0 && (aligned(pointers) && ...);
}

// Calls f.template operator()<scalar>() for the C++ type of `dtype`.
template <class Function> const char* with_scalar(Scalar dtype, const Function& f) {
  switch (dtype) {
  case Scalar::f32:
    return f(float{});
  case Scalar::bf16:
    return f(__nv_bfloat16{});
  case Scalar::f16:
    return f(__half{});
  default:
    return "float64 is for the CPU only";
  }
}

// The same as f(scalar{}, n): n elements are 16 bytes where rows of `width` elements can be moved
// so, and otherwise 1.
template <class Function, class... Pointers>
const char* with_vector(Scalar dtype, int64_t width, const Function& f,
                        const Pointers*... pointers) {
  return with_scalar(dtype, [&](auto type) {
    using scalar = decltype(type);
    if (vectorizes<scalar>(width, pointers...))
      f(type, std::integral_constant<int, 16 / sizeof(scalar)>{});
    else
      f(type, std::integral_constant<int, 1>{});
    return launch_error();
  });
}

} // namespace lah::ops::cuda
