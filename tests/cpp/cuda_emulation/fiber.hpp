// Stacks of one OS thread, between which it switches.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <memory>

#if defined(__has_feature) && !defined(__SANITIZE_ADDRESS__)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1 // as GCC says it
#endif
#endif
#if !defined(__SANITIZE_ADDRESS__)
#include <csetjmp>
#endif

namespace lah::cuda_emulation {

class Fiber {
public:
  Fiber() = default; // of the stack that the OS thread is on
  explicit Fiber(void (*function)());
  Fiber(Fiber&&) = delete;

  // Leaves the fiber that runs, `from`, for this one; returns when something enters `from` again.
  // `function` starts with arrive().
  void enter(Fiber& from);
  static Fiber& arrive();

private:
  static constexpr size_t kBytes = 64 << 10;

  std::unique_ptr<char[]> memory_;
  ucontext_t context_{};
#if defined(__SANITIZE_ADDRESS__)
  const void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
#else
  std::jmp_buf jump_{};
  bool started_ = true;
#endif
};

} // namespace lah::cuda_emulation
