// 16-bit floats, in loops that vectorise.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#define LAH_INLINE inline __attribute__((always_inline))

namespace lah {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type sums are made in.
template <class scalar>
using sum_t = std::conditional_t<std::is_same_v<scalar, double>, double, float>;

LAH_INLINE float widen(float x) {
  return x;
}
LAH_INLINE double widen(double x) {
  return x;
}
LAH_INLINE float
widen(const BFloat16& x) { // by reference: loops that copy a struct do not vectorise
  return std::bit_cast<float>(uint32_t{x.bits} << 16);
}
LAH_INLINE float widen(const Float16& x) { // without subnormal floats, which are slow or flushed
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = uint32_t{x.bits & 0x7fffu} << 13;
  const uint32_t normal = magnitude + (112u << 23);
  const float subnormal = std::bit_cast<float>(normal + (1u << 23)) - 0x1p-14f;
  const uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u; // infinity and NaN
  const uint32_t finite = (x.bits & 0x7c00u) == 0u ? std::bit_cast<uint32_t>(subnormal) : normal;
  return std::bit_cast<float>(finite | special | sign);
}

LAH_INLINE uint16_t bfloat16_bits(float x) { // to nearest even; a NaN must not round to infinity
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

LAH_INLINE uint16_t float16_bits(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x), sign = (u >> 16) & 0x8000u,
                 magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite));
}

// to = x, rounded. In loops: those that copy a struct do not vectorise.
template <class scalar> LAH_INLINE void narrow_into(scalar& to, sum_t<scalar> x) {
  if constexpr (std::is_same_v<scalar, BFloat16>)
    to.bits = bfloat16_bits(x);
  else if constexpr (std::is_same_v<scalar, Float16>)
    to.bits = float16_bits(x);
  else
    to = x;
}

template <class scalar> LAH_INLINE scalar narrow(sum_t<scalar> x) {
  scalar to;
  narrow_into(to, x);
  return to;
}

} // namespace lah
