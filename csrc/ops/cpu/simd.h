// What the CPU kernels share: compilation for several instruction sets, exp, streaming stores.
//
// Loops over kLanes elements are written so that compilers vectorise them without -ffast-math:
// reductions keep kLanes partial results and fold them in one fixed order, so every instruction
// set, and every number of threads, gives the same bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "base/float16.hpp"
#include "ops/kernels.h"

// A function compiled for several x86 levels; the loader picks one. Everything it calls in a loop
// must be LAH_INLINE. The baseline serves where there is no such loader (not glibc), no clones of
// templates (clang), or a sanitizer, whose instrumented resolvers would run before it is ready.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) &&                            \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if __GNUC__ >= 12
#define LAH_WIDEST "arch=x86-64-v4" // with vectors of 16-bit elements, which avx512f alone lacks
#else
#define LAH_WIDEST "avx512f"
#endif
#define LAH_MULTIVERSION __attribute__((target_clones(LAH_WIDEST, "avx2", "default")))
#else
#define LAH_MULTIVERSION
#endif

namespace lah::ops::cpu {

constexpr int64_t kLanes = 16;
// Outputs beyond this do not stay in a cache: write past it.
constexpr int64_t kStreamBytes = int64_t{4} << 20;

// exp for x <= 0, to 2 ulp; exactly 0 below -87. std::exp is a call that no loop vectorises around.
// (Cephes' polynomial.)
LAH_INLINE float exp_negative(float x) {
  constexpr float kRound = 12582912.0f; // adding 1.5 * 2^23 rounds to an integer
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  const int32_t exponent = (static_cast<int32_t>(n < -127.0f ? -127.0f : n) + 127) << 23;
  return x < -87.0f ? 0.0f : p * std::bit_cast<float>(exponent);
}
LAH_INLINE double exp_negative(double x) {
  return std::exp(x);
}

// 1 / (1 + exp(-x)); a NaN gives any finite value, for the callers multiply by x.
template <class real> LAH_INLINE real sigmoid(real x) {
  const real magnitude = x < 0 ? -x : x;
  const real e = exp_negative(magnitude == magnitude ? -magnitude : real{0});
  return (x < 0 ? e : real{1}) / (real{1} + e);
}

template <class real> LAH_INLINE real fold_sum(real* lanes) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l)
      lanes[l] += lanes[l + half];
  return lanes[0];
}

// The greatest of kLanes values, none of them NaN.
template <class real> LAH_INLINE real lanes_max(const real* values) {
#if defined(__SSE2__)
  if constexpr (std::is_same_v<real, float>) {
    const auto four = [&](int l) { return _mm_loadu_ps(values + l); };
    __m128 m = _mm_max_ps(_mm_max_ps(four(0), four(4)), _mm_max_ps(four(8), four(12)));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
#endif
  real greatest = values[0];
  for (int64_t l = 1; l < kLanes; ++l)
    greatest = values[l] > greatest ? values[l] : greatest;
  return greatest;
}

// A bit for each of kLanes values x with x + add >= threshold. Compilers find no good code for it.
template <class real>
LAH_INLINE uint32_t lanes_reaching(const real* values, real add, real threshold) {
  uint32_t bits = 0;
#if defined(__SSE2__)
  if constexpr (std::is_same_v<real, float>) {
    const __m128 a = _mm_set1_ps(add), t = _mm_set1_ps(threshold);
    for (int l = 0; l < kLanes; l += 4) {
      const __m128 reach = _mm_cmpge_ps(_mm_add_ps(_mm_loadu_ps(values + l), a), t);
      bits |= static_cast<uint32_t>(_mm_movemask_ps(reach)) << l;
    }
    return bits;
  }
#endif
  for (int l = 0; l < kLanes; ++l)
    bits |= uint32_t{values[l] + add >= threshold} << l;
  return bits;
}

// Whether stores of `bytes` to the row-aligned `to` may bypass the cache: they need 16-byte
// alignment.
inline bool can_stream(const void* to, int64_t row_bytes, int64_t total_bytes) {
#if defined(__SSE2__)
  return total_bytes > kStreamBytes && row_bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(to) % 16 == 0;
#else
  (void)to, (void)row_bytes, (void)total_bytes;
  return false;
#endif
}

// Asks for the cache lines of what will be read soon.
LAH_INLINE void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    __builtin_prefetch(static_cast<const char*>(from) + i);
}

// memcpy; with `stream`, past the cache: then `to` and `bytes` must be multiples of 16, and
// stream_fence must follow.
LAH_INLINE void copy(void* to, const void* from, int64_t bytes, bool stream) {
#if defined(__SSE2__)
  if (stream) {
    auto* out = static_cast<char*>(to);
    const auto* in = static_cast<const char*>(from);
    for (int64_t i = 0; i < bytes; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
    return;
  }
#endif
  (void)stream;
  if (bytes > 0)
    std::memcpy(to, from, static_cast<size_t>(bytes)); // to may be null if not
}

// Streaming stores are weakly ordered: make them visible before another thread is told that they
// are done.
inline void stream_fence(bool stream) {
#if defined(__SSE2__)
  if (stream)
    _mm_sfence();
#endif
  (void)stream;
}

// The row of assignment (t, j), or -1 if it is void, has none, or is not ok. A plan that was not
// made by route_grid (ids or rows out of range) reads as void: never out of bounds.
LAH_INLINE int64_t live_row(const Plan& plan, int64_t assignment) {
  const int64_t expert = plan.index[assignment], rank = plan.rank[assignment];
  if (expert < 0 || rank < 0 || expert >= plan.experts)
    return -1;
  const int64_t row = plan.offset[expert] + rank;
  if (row < 0 || row >= plan.rows || (plan.ok != nullptr && !plan.ok[row]))
    return -1;
  return row;
}

// Calls f with a value of the C++ type of `dtype`.
template <class Function> void with_scalar(Scalar dtype, Function&& f) {
  switch (dtype) {
  case Scalar::f32:
    return f(float{});
  case Scalar::f64:
    return f(double{});
  case Scalar::bf16:
    return f(BFloat16{});
  case Scalar::f16:
    return f(Float16{});
  }
}

} // namespace lah::ops::cpu
