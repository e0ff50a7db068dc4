// Rows without an owner: dispatch and combine_backward leave zeros in them.
#pragma once

#include "ops/cuda/common.cuh"

namespace lah::ops::cuda {

constexpr unsigned kTailBlocks = 64;

// Whether every row before offset[experts] has an owner, so that the same launch can clear the
// others: the plan was made with align 1.
__host__ __device__ inline bool is_packed(const Plan& plan) {
  return plan.rows == plan.tokens * plan.choices;
}

// Blocks of a launch: one a token, and those that clear the tail.
inline unsigned blocks_of(const Plan& plan) {
  return static_cast<unsigned>(plan.tokens) + (is_packed(plan) ? kTailBlocks : 0);
}

// By the blocks after those of the tokens: zeros in the rows that no expert has; -1 in their
// source, unless that is null.
template <class unit>
__device__ void clear_tail(const Plan& plan, unit* rows, int64_t units, int32_t* source) {
  const int64_t end = plan.offset[plan.experts];
  for (int64_t row = (end > 0 ? end : 0) + (blockIdx.x - plan.tokens); row < plan.rows;
       row += kTailBlocks) {
    if (source != nullptr && threadIdx.x == 0)
      source[row] = -1;
    for (int64_t i = threadIdx.x; i < units; i += kThreads)
      rows[row * units + i] = unit{};
  }
}

// Plans that are not packed: before and after the launch,

// source[...] = -1,
const char* forget_sources(int32_t* source, int64_t rows, cudaStream_t stream);
// and zeros in the rows whose source is still -1.
const char* clear_unowned(void* rows, const int32_t* source, int64_t count, int64_t row_bytes,
                          cudaStream_t stream);

} // namespace lah::ops::cuda
