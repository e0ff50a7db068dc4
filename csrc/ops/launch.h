// What the files of the ops share: where an op runs, rows without an owner, registration.
//
// Everything is checked before work starts: an exception inside parallel_for would lose its
// message.
#pragma once

#include <algorithm>

#include <torch/csrc/stable/library.h>

#include "ops/checks.h"

// Only a torch with CUDA has it.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace lah::ops {

using torch::stable::new_empty;
using torch::stable::parallel_for;

#ifdef LAH_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// Runs an op where its tensors are: on_cuda(stream) on the current stream of the device of `like`,
// or on_cpu(). on_cuda takes `auto`, so that a CPU-only build never instantiates it.
template <class OnCuda, class OnCpu>
void run(const char* op, const Tensor& like, const OnCuda& on_cuda, const OnCpu& on_cpu) {
  if constexpr (kWithCuda) {
    if (like.is_cuda()) {
      STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, op,
                      ": this torch has no CUDA");
      const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
      void* stream = nullptr;
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
      const char* error = on_cuda(stream);
      STD_TORCH_CHECK(error == nullptr, op, ": CUDA: ", error);
      return;
    }
  }
  on_cpu();
}

// On the CPU, zeros in the rows whose source is -1. Most often every row has an owner, or all but
// the last ones: start at the first that has none.
inline void clear_unowned(void* rows, const int32_t* source, int64_t count, int64_t row_bytes) {
  const int64_t first = std::find(source, source + count, -1) - source;
  parallel_for(first, count, kTokenTile, [&](int64_t begin, int64_t end) {
    cpu::clear_unowned(rows, source, row_bytes, begin, end);
  });
}

} // namespace lah::ops

// Registers what `implement(library)` implements, for every device that this build has kernels for.
#ifdef LAH_WITH_CUDA
#define LAH_REGISTER_OPS(implement)                                                                \
  STABLE_TORCH_LIBRARY_IMPL(learning_at_home, CPU, library) {                                      \
    implement(library);                                                                            \
  }                                                                                                \
  STABLE_TORCH_LIBRARY_IMPL(learning_at_home, CUDA, library) {                                     \
    implement(library);                                                                            \
  }
#else
#define LAH_REGISTER_OPS(implement)                                                                \
  STABLE_TORCH_LIBRARY_IMPL(learning_at_home, CPU, library) {                                      \
    implement(library);                                                                            \
  }
#endif
