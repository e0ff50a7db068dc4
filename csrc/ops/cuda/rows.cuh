// Rows without an owner: dispatch and combine_backward leave zeros in them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lah::ops::cuda {

// source[...] = -1
const char* forget_sources(int32_t* source, int64_t rows, cudaStream_t stream);
// Writes zeros to the rows whose source is still -1.
const char* clear_unowned(void* rows, const int32_t* source, int64_t count, int64_t row_bytes,
                          cudaStream_t stream);

} // namespace lah::ops::cuda
