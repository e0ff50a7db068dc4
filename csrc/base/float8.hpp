// The 8-bit float e4m3fn (OCP 8-bit floating point specification, 2023): 4 bits of exponent, 3 of
// mantissa, no infinities, one NaN of each sign, largest 448. In loops that vectorise.
#pragma once

#include "base/float16.hpp"

namespace lah {

// The code in the low 8 of 32 bits: loops that also change the width of values do not vectorise.
LAH_INLINE float float_of_e4m3(uint32_t code) { // without subnormals, which are slow or flushed
  const uint32_t sign = (code & 0x80u) << 24, magnitude = code & 0x7fu;
  const uint32_t normal = (magnitude << 20) + (120u << 23);
  const float subnormal = std::bit_cast<float>(normal + (1u << 23)) - 0x1p-6f;
  const uint32_t finite = magnitude < 8u ? std::bit_cast<uint32_t>(subnormal) : normal;
  return std::bit_cast<float>(sign | (magnitude == 0x7fu ? 0x7fc00000u : finite));
}

// Rounds to nearest even. What is larger than 448, infinity included, becomes 448; NaN stays NaN.
LAH_INLINE uint32_t e4m3_of_float(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x), magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - (120u << 23) + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  const uint32_t subnormal = // the unit of 2^14 is the least subnormal, 2^-9
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) - 0x46800000u;
  const uint32_t finite = magnitude < 0x3c800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7fu : 0x7eu;
  return (u >> 24 & 0x80u) | (magnitude >= 0x43e00000u ? special : finite);
}

} // namespace lah
