#pragma once

#include "base/float8.hpp"
#include "cuda_emulation/cuda_fp16.h"

using __nv_fp8_storage_t = unsigned char;
enum __nv_saturation_t { __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3 };

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t,
                                                __nv_fp8_interpretation_t) {
  return static_cast<__nv_fp8_storage_t>(lah::e4m3_of_float(x));
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t x, __nv_fp8_interpretation_t) {
  return {lah::narrow<lah::Float16>(lah::float_of_e4m3(x)).bits};
}
