// Counts what a decoder allocates: a few bytes must never make it ask for many.
#pragma once

#include <sanitizer/allocator_interface.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace lah::fuzz {

// While it lives, at most kFactor x `input_bytes` + kConstant may be held at once by what this
// thread allocated since; the destructor judges. One at a time.
class AllocationBudget {
public:
  static constexpr size_t kFactor = 64;
  static constexpr size_t kConstant = 4096;

  explicit AllocationBudget(size_t input_bytes) : budget_(kFactor * input_bytes + kConstant) {
    static const int installed = __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    if (installed == 0)
      std::abort();
    held_ = peak_ = 0;
    counting_ = true;
  }
  ~AllocationBudget() {
    counting_ = false;
    if (peak_ > static_cast<ptrdiff_t>(budget_)) {
      std::fprintf(stderr, "%td bytes allocated at once, %zu allowed\n", peak_, budget_);
      std::abort();
    }
  }
  AllocationBudget(const AllocationBudget&) = delete;
  AllocationBudget& operator=(const AllocationBudget&) = delete;

private:
  static void on_malloc(const volatile void*, size_t size) {
    if (!counting_)
      return;
    held_ += static_cast<ptrdiff_t>(size);
    peak_ = std::max(peak_, held_);
  }
  static void on_free(const volatile void* block) {
    if (counting_ && block != nullptr)
      held_ -=
          static_cast<ptrdiff_t>(__sanitizer_get_allocated_size(const_cast<const void*>(block)));
  }

  size_t budget_;
  inline static thread_local bool counting_ = false;
  inline static thread_local ptrdiff_t held_ = 0;
  inline static thread_local ptrdiff_t peak_ = 0;
};

} // namespace lah::fuzz
