#pragma once

#include "base/float16.hpp"

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  return lah::widen(lah::BFloat16{x.bits});
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return {lah::narrow<lah::BFloat16>(x).bits};
}
