#include "base/dtype.hpp"

#include <array>

namespace lah {
namespace {

constexpr std::array<size_t, kDTypes + 1> kBytes{0, 4, 8, 2, 2, 1, 2, 4, 8, 1, 1};
constexpr std::array<const char*, kDTypes + 1> kNames{"?",        "float32", "float64", "float16",
                                                      "bfloat16", "int8",    "int16",   "int32",
                                                      "int64",    "uint8",   "bool"};

} // namespace

size_t dtype_bytes(DType dtype) {
  return kBytes[static_cast<size_t>(dtype)];
}

const char* dtype_name(DType dtype) {
  return kNames[static_cast<size_t>(dtype)];
}

} // namespace lah
