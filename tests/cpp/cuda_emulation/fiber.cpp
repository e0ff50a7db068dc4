#undef _FORTIFY_SOURCE // its longjmp refuses to go from one stack to another

#include "cuda_emulation/fiber.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace lah::cuda_emulation {
namespace {
thread_local Fiber *left = nullptr, *entered = nullptr; // by the last switch
}

Fiber::Fiber(void (*function)()) : memory_(std::make_unique_for_overwrite<char[]>(kBytes)) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = memory_.get();
  context_.uc_stack.ss_size = kBytes;
  makecontext(&context_, function, 0);
#if defined(__SANITIZE_ADDRESS__)
  stack_ = memory_.get();
  stack_bytes_ = kBytes;
#else
  started_ = false;
#endif
}

#if defined(__SANITIZE_ADDRESS__)

void Fiber::enter(Fiber& from) {
  left = &from;
  entered = this;
  __sanitizer_start_switch_fiber(&from.fake_stack_, stack_, stack_bytes_);
  swapcontext(&from.context_, &context_);
  arrive();
}

Fiber& Fiber::arrive() {
  __sanitizer_finish_switch_fiber(entered->fake_stack_, &left->stack_, &left->stack_bytes_);
  return *entered;
}

#else

// swapcontext makes a system call: only the first entry needs it.
void Fiber::enter(Fiber& from) {
  left = &from;
  entered = this;
  if (_setjmp(from.jump_) != 0)
    return;
  if (started_)
    _longjmp(jump_, 1);
  swapcontext(&from.context_, &context_);
}

Fiber& Fiber::arrive() {
  entered->started_ = true;
  return *entered;
}

#endif

} // namespace lah::cuda_emulation
