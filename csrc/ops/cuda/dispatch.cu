#include "ops/cuda/common.cuh"
#include "ops/cuda/rows.cuh"

namespace lah::ops::cuda {
namespace {

// A block a token: read once, stored once per choice. `unit` is the largest type that row_bytes and
// the pointers allow.
template <class unit>
__global__ void __launch_bounds__(kThreads) dispatch_kernel(DispatchArgs a, int64_t units) {
  const int64_t token = blockIdx.x;
  if (token >= a.plan.tokens)
    return clear_tail(a.plan, static_cast<unit*>(a.rows), units, a.source);
  __shared__ int64_t row[kMaxChoices];
  if (threadIdx.x < a.plan.choices) {
    const int64_t assignment = token * a.plan.choices + threadIdx.x;
    const int64_t r = live_row(a.plan, assignment);
    row[threadIdx.x] = r;
    if (r >= 0)
      a.source[r] = static_cast<int32_t>(assignment);
  }
  __syncthreads();
  const unit* from = static_cast<const unit*>(a.x) + token * units;
  unit* to = static_cast<unit*>(a.rows);
  for (int64_t i = threadIdx.x; i < units; i += kThreads) {
    const unit value = from[i];
    for (int64_t j = 0; j < a.plan.choices; ++j)
      if (row[j] >= 0)
        to[row[j] * units + i] = value;
  }
}

template <class unit> void launch_dispatch(const DispatchArgs& a, cudaStream_t stream) {
  dispatch_kernel<unit><<<blocks_of(a.plan), kThreads, 0, stream>>>(
      a, a.row_bytes / static_cast<int64_t>(sizeof(unit)));
}

} // namespace

const char* dispatch(const DispatchArgs& a, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.plan.rows == 0)
    return nullptr;
  const bool packed = is_packed(a.plan);
  const char* error = packed ? nullptr : forget_sources(a.source, a.plan.rows, stream);
  if (error == nullptr && a.plan.tokens > 0) {
    if (a.row_bytes % 16 == 0 && aligned(a.x) && aligned(a.rows))
      launch_dispatch<uint4>(a, stream);
    else if (a.row_bytes % 4 == 0 && aligned(a.x, 4) && aligned(a.rows, 4))
      launch_dispatch<uint32_t>(a, stream);
    else
      launch_dispatch<uint8_t>(a, stream);
    error = launch_error();
  }
  return error != nullptr || packed
             ? error
             : clear_unowned(a.rows, a.source, a.plan.rows, a.row_bytes, stream);
}

} // namespace lah::ops::cuda
