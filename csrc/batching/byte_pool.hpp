#pragma once

#include <mutex>
#include <unordered_map>

#include "base/shared_bytes.hpp"

namespace lah::batching {

// Recycles large buffers: fresh 64 MiB from the system cost more in page faults than in copying.
// Buffers come back from any thread, also after the pool itself is gone.
class BytePool final : public ByteAllocator {
public:
  explicit BytePool(size_t keep_bytes);
  SharedBytes allocate(size_t size) override;

private:
  struct Shelf {
    std::mutex mutex;
    std::unordered_map<size_t, std::vector<std::byte*>> free; // by capacity
    size_t bytes = 0;
    size_t keep_bytes = 0;
    ~Shelf();
    void put_back(std::byte* buffer, size_t capacity);
  };
  std::shared_ptr<Shelf> shelf_;
};

} // namespace lah::batching
