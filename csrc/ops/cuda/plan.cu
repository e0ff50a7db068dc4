#include "ops/cuda/common.cuh"

namespace lah::ops::cuda {
namespace {

constexpr int kScanThreads = 1024;
constexpr int kScanTiles = 8; // tiles whose counts are in flight at once

// A warp owns a tile of consecutive assignments and that tile's row of counters, and takes 32
// assignments at a time: those of one expert are counted by the lowest lane among them.
struct TileWarp {
  int64_t begin, end;
  int32_t* counter; // [experts]

  __device__ TileWarp(const PlanArgs& a, int64_t tile) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_of_block();
    begin = index * tile;
    end = min(begin + tile, a.assignments);
    counter = a.tile_count + index * a.experts;
  }

  // Calls each(assignment, expert or -1, lanes of the warp with the same expert).
  template <class Each> __device__ void for_each(const PlanArgs& a, const Each& each) const {
    for (int64_t first = begin; first < end; first += kWarp) {
      const int64_t i = first + lane_id();
      int expert = i < end ? a.index[i] : -1;
      expert = expert < a.experts ? expert : -1; // out of range reads as void
      each(i, expert, __match_any_sync(kAllLanes, expert));
      __syncwarp(); // the next 32 may count the same expert from another lane
    }
  }
};

__device__ bool is_lowest(unsigned group) {
  return (group & ((1u << lane_id()) - 1)) == 0;
}

__global__ void __launch_bounds__(kThreads) count_kernel(PlanArgs a, int64_t tile) {
  const TileWarp warp(a, tile);
  warp.for_each(a, [&](int64_t, int expert, unsigned group) {
    if (expert >= 0 && is_lowest(group))
      warp.counter[expert] += __popc(group);
  });
}

// Counters become the number of the expert's assignments in earlier tiles. A thread an expert.
__global__ void __launch_bounds__(kThreads) scan_tiles_kernel(PlanArgs a, int64_t tiles) {
  const int64_t expert = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (expert >= a.experts)
    return;
  int32_t total = 0;
  for (int64_t first = 0; first < tiles; first += kScanTiles) {
    int32_t count[kScanTiles];
#pragma unroll
    for (int i = 0; i < kScanTiles; ++i)
      count[i] = first + i < tiles ? a.tile_count[(first + i) * a.experts + expert] : 0;
#pragma unroll
    for (int i = 0; i < kScanTiles; ++i) {
      if (first + i < tiles)
        a.tile_count[(first + i) * a.experts + expert] = total;
      total += count[i];
    }
  }
  a.count[expert] = total;
}

__device__ int32_t kept_rows(const PlanArgs& a, int64_t expert) {
  const int64_t kept =
      a.capacity == 0 ? a.count[expert] : min(static_cast<int64_t>(a.count[expert]), a.capacity);
  return static_cast<int32_t>((kept + a.align - 1) / a.align * a.align);
}

// One block: each thread sums a range of experts, the sums are scanned in shared memory.
__global__ void __launch_bounds__(kScanThreads) offset_kernel(PlanArgs a) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t range = (a.experts + kScanThreads - 1) / kScanThreads;
  const int64_t begin = thread * range, end = min(begin + range, a.experts);
  int32_t total = 0;
  for (int64_t e = begin; e < end; ++e)
    total += kept_rows(a, e);
  __shared__ int32_t sums[kScanThreads];
  sums[thread] = total;
  __syncthreads();
  for (int step = 1; step < kScanThreads; step *= 2) {
    const int32_t before = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  int32_t next = sums[thread] - total;
  for (int64_t e = begin; e < end; ++e) {
    a.offset[e] = next;
    next += kept_rows(a, e);
  }
  if (thread == kScanThreads - 1)
    a.offset[a.experts] = sums[thread];
}

__global__ void __launch_bounds__(kThreads) rank_kernel(PlanArgs a, int64_t tile) {
  const TileWarp warp(a, tile);
  warp.for_each(a, [&](int64_t i, int expert, unsigned group) {
    const int32_t earlier = expert >= 0 ? warp.counter[expert] : 0;
    __syncwarp(); // all lanes have read before one counts
    if (expert >= 0 && is_lowest(group))
      warp.counter[expert] = earlier + __popc(group);
    const int32_t rank = earlier + __popc(group & ((1u << lane_id()) - 1));
    const bool kept = expert >= 0 && (a.capacity == 0 || rank < a.capacity);
    if (i < warp.end)
      a.rank[i] = kept ? rank : -1;
  });
}

} // namespace

const char* plan(const PlanArgs& a, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  const int64_t tile = rank_tile(a.assignments, a.experts),
                tiles = rank_tiles(a.assignments, a.experts);
  const unsigned tile_blocks = blocks_for(tiles, kThreads / kWarp);
  if (tiles > 0) {
    const auto bytes = static_cast<size_t>(tiles * a.experts) * sizeof(int32_t);
    const cudaError_t error = cudaMemsetAsync(a.tile_count, 0, bytes, stream);
    if (error != cudaSuccess)
      return cudaGetErrorString(error);
    count_kernel<<<tile_blocks, kThreads, 0, stream>>>(a, tile);
    if (const char* message = launch_error())
      return message;
  }
  scan_tiles_kernel<<<blocks_for(a.experts, kThreads), kThreads, 0, stream>>>(a, tiles);
  if (const char* message = launch_error())
    return message;
  offset_kernel<<<1, kScanThreads, 0, stream>>>(a);
  if (const char* message = launch_error())
    return message;
  if (tiles > 0)
    rank_kernel<<<tile_blocks, kThreads, 0, stream>>>(a, tile);
  return launch_error();
}

} // namespace lah::ops::cuda
