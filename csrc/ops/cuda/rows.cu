#include "ops/cuda/common.cuh"
#include "ops/cuda/rows.cuh"

namespace lah::ops::cuda {
namespace {

// A warp a row, as most rows have an owner and their warps leave at once.
template <class unit>
__global__ void __launch_bounds__(kThreads)
    clear_kernel(unit* rows, const int32_t* source, int64_t count, int64_t units, unit zero) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_of_block();
  if (row >= count || source[row] >= 0)
    return;
  for (int64_t i = lane_id(); i < units; i += kWarp)
    rows[row * units + i] = zero;
}

template <class unit>
void launch_clear(void* rows, const int32_t* source, int64_t count, int64_t row_bytes,
                  cudaStream_t stream) {
  clear_kernel<unit><<<blocks_for(count, kThreads / kWarp), kThreads, 0, stream>>>(
      static_cast<unit*>(rows), source, count, row_bytes / static_cast<int64_t>(sizeof(unit)),
      unit{});
}

} // namespace

const char* forget_sources(int32_t* source, int64_t rows, cudaStream_t stream) {
  const cudaError_t error =
      cudaMemsetAsync(source, 0xff, static_cast<size_t>(rows) * sizeof(int32_t), stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* clear_unowned(void* rows, const int32_t* source, int64_t count, int64_t row_bytes,
                          cudaStream_t stream) {
  if (count == 0 || row_bytes == 0)
    return nullptr;
  if (row_bytes % 16 == 0 && aligned(rows))
    launch_clear<uint4>(rows, source, count, row_bytes, stream);
  else if (row_bytes % 4 == 0 && aligned(rows, 4))
    launch_clear<uint32_t>(rows, source, count, row_bytes, stream);
  else
    launch_clear<uint8_t>(rows, source, count, row_bytes, stream);
  return launch_error();
}

} // namespace lah::ops::cuda
