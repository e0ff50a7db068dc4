#pragma once

#include "base/float16.hpp"

struct __half_raw {
  uint16_t x;
};
struct __half {
  uint16_t bits = 0;
  __half() = default;
  __half(__half_raw raw) : bits(raw.x) {}
};

inline float __half2float(__half x) {
  return lah::widen(lah::Float16{x.bits});
}
inline __half __float2half_rn(float x) {
  return __half_raw{lah::narrow<lah::Float16>(x).bits};
}
