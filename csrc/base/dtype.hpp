// Element types of tensors, as they are numbered on the wire (learning_at_home/schema.py has the
// same codes).
#pragma once

#include <cstddef>
#include <cstdint>

namespace lah {

enum class DType : uint8_t {
  kFloat32 = 1,
  kFloat64 = 2,
  kFloat16 = 3,
  kBFloat16 = 4,
  kInt8 = 5,
  kInt16 = 6,
  kInt32 = 7,
  kInt64 = 8,
  kUInt8 = 9,
  kBool = 10,
};
inline constexpr uint64_t kDTypes = 10;

size_t dtype_bytes(DType dtype);
const char* dtype_name(DType dtype);

} // namespace lah
