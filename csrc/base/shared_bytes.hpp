#pragma once

#include <memory>

#include "base/bytes.hpp"

namespace lah {

// A buffer whose last holder gives it back, on whatever thread that happens.
using SharedBytes = std::shared_ptr<std::byte[]>;

class ByteAllocator {
public:
  virtual ~ByteAllocator() = default;
  // At least `size` bytes on a kTensorAlign boundary, not cleared. Null if the memory is not to be
  // had.
  virtual SharedBytes allocate(size_t size) = 0;
};

} // namespace lah
