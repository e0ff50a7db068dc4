// The part of CUDA that the kernels of this project use, on emulator.hpp. Lane masks are taken more
// strictly than CUDA does: lanes that have returned must not be named.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda_emulation/emulator.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 {
  alignas(8) unsigned x;
  unsigned y;
};
struct uint4 {
  alignas(16) unsigned x;
  unsigned y, z, w;
};
struct float2 {
  alignas(8) float x;
  float y;
};
struct float4 {
  alignas(16) float x;
  float y, z, w;
};

// Host side.

using cudaStream_t = struct Stream*; // work is done when it is enqueued
enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidConfiguration,
  cudaErrorCooperativeLaunchTooLarge,
  cudaErrorLaunchFailure
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrCooperativeLaunch };

namespace lah::cuda_emulation {

inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local std::string last_failure;

inline cudaError_t start(const Shape& shape, const std::function<void()>& thread) {
  ++enqueued;
  const uint64_t blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  if (blocks == 0 || shape.grid.x > 0x7fffffffu || shape.grid.y > 65535 || shape.grid.z > 65535 ||
      threads == 0 || threads > 1024 || shape.dynamic_bytes > kSharedBytes)
    return last_error = cudaErrorInvalidConfiguration;
  if (shape.cooperative && blocks > kProcessors * kBlocksPerProcessor)
    return last_error = cudaErrorCooperativeLaunchTooLarge;
  last_failure = run(shape, thread);
  return last_failure.empty() ? cudaSuccess : last_error = cudaErrorLaunchFailure;
}

// kernel<<<grid, block, bytes, stream>>>(arguments...)
template <class... P>
auto launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes = 0, cudaStream_t = nullptr) {
  return [=](P... arguments) { start({grid, block, bytes}, [&] { kernel(arguments...); }); };
}

} // namespace lah::cuda_emulation

inline cudaError_t cudaGetLastError() {
  return std::exchange(lah::cuda_emulation::last_error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess:
    return "no error";
  case cudaErrorInvalidConfiguration:
    return "invalid configuration argument";
  case cudaErrorCooperativeLaunchTooLarge:
    return "too many blocks in cooperative launch";
  case cudaErrorLaunchFailure:
    return lah::cuda_emulation::last_failure.c_str();
  }
  return "unknown error";
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  ++lah::cuda_emulation::enqueued;
  if (bytes > 0)
    std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? lah::cuda_emulation::kProcessors : 1;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = lah::cuda_emulation::kBlocksPerProcessor;
  return cudaSuccess;
}
template <class... P>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(P...), dim3 grid, dim3 block,
                                        void** arguments, size_t bytes = 0,
                                        cudaStream_t = nullptr) {
  const auto call = [&]<size_t... i>(std::index_sequence<i...>) {
    kernel(*static_cast<std::remove_reference_t<P>*>(arguments[i])...);
  };
  return lah::cuda_emulation::start({grid, block, bytes, true},
                                    [&] { call(std::index_sequence_for<P...>()); });
}

// Device side.

namespace lah::cuda_emulation {

template <class T> uint64_t pack(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t packed = 0;
  std::memcpy(&packed, &value, sizeof(T));
  return packed;
}
template <class T> T unpack(uint64_t packed) {
  T value;
  std::memcpy(&value, &packed, sizeof(T));
  return value;
}

// source(lane): which lane to read; one outside of the lane's segment of `width` reads itself.
template <class T, class Source>
T shuffle(const char* operation, unsigned mask, T value, unsigned width, const Where& where,
          const Source& source) {
  const Lanes lanes = exchange(operation, mask, pack(value), where);
  const unsigned segment = lane() / width * width;
  const unsigned wanted = source(lane(), segment);
  const unsigned from = wanted >= segment && wanted < segment + width ? wanted : lane();
  if ((mask >> from & 1u) == 0)
    fail(std::string(operation) + " reads a lane that is not in the mask", where);
  return unpack<T>(lanes[from]);
}

template <class T, class Fold>
T reduce(const char* operation, unsigned mask, T value, const Where& where, const Fold& fold) {
  const Lanes lanes = exchange(operation, mask, pack(value), where);
  for (unsigned l = 0; l < kWarp; ++l)
    if (l != lane() && (mask >> l & 1u) != 0)
      value = fold(value, unpack<T>(lanes[l]));
  return value;
}

template <class T, class Change> T atomic(T* at, const Change& change) {
  const T before = *at;
  *at = change(before);
  return before;
}

} // namespace lah::cuda_emulation

#define LAH_WHERE const std::source_location& where = std::source_location::current()

inline void __syncthreads(LAH_WHERE) {
  lah::cuda_emulation::sync_block(false, where);
}
inline int __syncthreads_count(int yes, LAH_WHERE) {
  return static_cast<int>(lah::cuda_emulation::sync_block(yes != 0, where));
}
inline int __syncthreads_or(int yes, LAH_WHERE) {
  return lah::cuda_emulation::sync_block(yes != 0, where) > 0;
}
inline int __syncthreads_and(int yes, LAH_WHERE) {
  return lah::cuda_emulation::sync_block(yes == 0, where) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, LAH_WHERE) {
  lah::cuda_emulation::exchange("__syncwarp", mask, 0, where);
}

template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, LAH_WHERE) {
  const auto w = static_cast<unsigned>(width);
  return lah::cuda_emulation::shuffle(
      "__shfl_sync", mask, value, w, where,
      [&](unsigned, unsigned segment) { return segment + static_cast<unsigned>(from) % w; });
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, LAH_WHERE) {
  return lah::cuda_emulation::shuffle(
      "__shfl_xor_sync", mask, value, static_cast<unsigned>(width), where,
      [&](unsigned lane, unsigned) { return lane ^ static_cast<unsigned>(bits); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32, LAH_WHERE) {
  return lah::cuda_emulation::shuffle(
      "__shfl_up_sync", mask, value, static_cast<unsigned>(width), where,
      [&](unsigned lane, unsigned) { return lane - step; }); // below zero: far beyond the warp
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32, LAH_WHERE) {
  return lah::cuda_emulation::shuffle("__shfl_down_sync", mask, value, static_cast<unsigned>(width),
                                      where, [&](unsigned lane, unsigned) { return lane + step; });
}

template <class T> unsigned __match_any_sync(unsigned mask, T value, LAH_WHERE) {
  const uint64_t mine = lah::cuda_emulation::pack(value);
  const auto lanes = lah::cuda_emulation::exchange("__match_any_sync", mask, mine, where);
  unsigned same = 0;
  for (unsigned l = 0; l < lanes.size(); ++l)
    same |= static_cast<unsigned>((mask >> l & 1u) != 0 && lanes[l] == mine) << l;
  return same;
}
inline unsigned __ballot_sync(unsigned mask, int yes, LAH_WHERE) {
  const unsigned bit = static_cast<unsigned>(yes != 0) << lah::cuda_emulation::lane();
  return lah::cuda_emulation::reduce("__ballot_sync", mask, bit, where, std::bit_or<>());
}
inline int __any_sync(unsigned mask, int yes, LAH_WHERE) {
  return lah::cuda_emulation::reduce("__any_sync", mask, yes != 0, where, std::logical_or<>());
}
inline int __all_sync(unsigned mask, int yes, LAH_WHERE) {
  return lah::cuda_emulation::reduce("__all_sync", mask, yes != 0, where, std::logical_and<>());
}
template <class T> T __reduce_add_sync(unsigned mask, T value, LAH_WHERE) {
  return lah::cuda_emulation::reduce("__reduce_add_sync", mask, value, where, std::plus<T>());
}
template <class T> T __reduce_max_sync(unsigned mask, T value, LAH_WHERE) {
  return lah::cuda_emulation::reduce("__reduce_max_sync", mask, value, where,
                                     [](T a, T b) { return std::max(a, b); });
}
template <class T> T __reduce_min_sync(unsigned mask, T value, LAH_WHERE) {
  return lah::cuda_emulation::reduce("__reduce_min_sync", mask, value, where,
                                     [](T a, T b) { return std::min(a, b); });
}
template <class T> T __reduce_or_sync(unsigned mask, T value, LAH_WHERE) {
  return lah::cuda_emulation::reduce("__reduce_or_sync", mask, value, where, std::bit_or<T>());
}
#undef LAH_WHERE

template <class T> T atomicAdd(T* at, std::type_identity_t<T> x) {
  return lah::cuda_emulation::atomic(at, [&](T before) { return before + x; });
}
template <class T> T atomicMax(T* at, std::type_identity_t<T> x) {
  return lah::cuda_emulation::atomic(at, [&](T before) { return std::max(before, x); });
}
template <class T> T atomicMin(T* at, std::type_identity_t<T> x) {
  return lah::cuda_emulation::atomic(at, [&](T before) { return std::min(before, x); });
}
template <class T> T atomicOr(T* at, std::type_identity_t<T> x) {
  return lah::cuda_emulation::atomic(at, [&](T before) { return before | x; });
}
template <class T> T atomicExch(T* at, std::type_identity_t<T> x) {
  return std::exchange(*at, x);
}
template <class T> T atomicCAS(T* at, std::type_identity_t<T> old, std::type_identity_t<T> x) {
  return lah::cuda_emulation::atomic(at, [&](T before) { return before == old ? x : before; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> T __ldg(const T* at) {
  return *at;
}
template <class T> T __ldcs(const T* at) {
  return *at;
}
template <class T> void __stcs(T* at, std::type_identity_t<T> value) {
  *at = value;
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline int __float2int_rn(float x) {
  return static_cast<int>(std::nearbyint(x));
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
