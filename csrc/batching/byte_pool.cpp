#include "batching/byte_pool.hpp"

#include <bit>
#include <cstdlib>

namespace lah::batching {
namespace {
constexpr size_t kSmallest = 4096;
}

BytePool::BytePool(size_t keep_bytes) : shelf_(std::make_shared<Shelf>()) {
  shelf_->keep_bytes = keep_bytes;
}

BytePool::Shelf::~Shelf() {
  for (auto& [capacity, buffers] : free)
    for (std::byte* buffer : buffers)
      std::free(buffer);
}

void BytePool::Shelf::put_back(std::byte* buffer, size_t capacity) {
  {
    const std::lock_guard lock(mutex);
    if (bytes + capacity <= keep_bytes) {
      free[capacity].push_back(buffer);
      bytes += capacity;
      return;
    }
  }
  std::free(buffer);
}

SharedBytes BytePool::allocate(size_t size) {
  const size_t capacity = std::bit_ceil(std::max(size, kSmallest));
  std::byte* buffer = nullptr;
  {
    const std::lock_guard lock(shelf_->mutex);
    if (auto& shelf = shelf_->free[capacity]; !shelf.empty()) {
      buffer = shelf.back();
      shelf.pop_back();
      shelf_->bytes -= capacity;
    }
  }
  if (buffer == nullptr)
    buffer = static_cast<std::byte*>(std::aligned_alloc(kTensorAlign, capacity));
  if (buffer == nullptr)
    return nullptr;
  return {buffer,
          [shelf = shelf_, capacity](std::byte* returned) { shelf->put_back(returned, capacity); }};
}

} // namespace lah::batching
