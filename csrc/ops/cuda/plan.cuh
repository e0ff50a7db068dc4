// Ranks, offsets and statistics in the launch that chooses: phases of one cooperative kernel, with
// barriers of the whole grid between them.
#pragma once

#include <cooperative_groups.h>

#include "ops/cuda/common.cuh"

namespace lah::ops::cuda {

constexpr int kScanTiles = 8; // tiles whose counts are in flight at once

__device__ inline int64_t thread_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ inline int64_t threads_of_grid() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}

__device__ inline bool is_lowest(unsigned group) {
  return (group & ((1u << lane_id()) - 1)) == 0;
}

// A warp owns a tile of consecutive assignments and that tile's row of counters, and takes 32
// assignments at a time: those of one expert are counted by the lowest lane among them. Calls
// each(assignment, expert or -1, lanes of the warp with the same expert).
template <class Each>
__device__ void for_assignments(const PlanArgs& a, int64_t tile, const Each& each) {
  const int64_t size = rank_tile(a.assignments, a.experts);
  const int64_t end = min((tile + 1) * size, a.assignments);
  for (int64_t first = tile * size; first < end; first += kWarp) {
    const int64_t i = first + lane_id();
    int expert = i < end ? a.index[i] : -1;
    expert = expert >= 0 && expert < a.experts ? expert : -1;
    each(i, expert, __match_any_sync(kAllLanes, expert));
    __syncwarp(); // the next 32 may count the same expert from another lane
  }
}

// Calls each(tile, its counters) for the tiles of this warp.
template <class Each> __device__ void for_tiles(const PlanArgs& a, const Each& each) {
  const int64_t tiles = rank_tiles(a.assignments, a.experts), warps = threads_of_grid() / kWarp;
  for (int64_t tile = thread_of_grid() / kWarp; tile < tiles; tile += warps)
    each(tile, a.tile_count + tile * a.experts);
}

// 1. The assignments of each tile to each expert.
__device__ inline void count_tiles(const PlanArgs& a) {
  for_tiles(a, [&](int64_t tile, int32_t* counter) {
    for (int64_t e = lane_id(); e < a.experts; e += kWarp)
      counter[e] = 0;
    __syncwarp();
    for_assignments(a, tile, [&](int64_t, int expert, unsigned group) {
      if (expert >= 0 && is_lowest(group))
        counter[expert] += __popc(group);
    });
  });
}

// 2. Counters become the number of the expert's assignments in earlier tiles. Calls each(expert,
// all its assignments).
template <class Each> __device__ void scan_tiles(const PlanArgs& a, const Each& each) {
  const int64_t tiles = rank_tiles(a.assignments, a.experts);
  for (int64_t expert = thread_of_grid(); expert < a.experts; expert += threads_of_grid()) {
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
    each(expert, total);
  }
}

__device__ inline int32_t kept_rows(const PlanArgs& a, int64_t expert) {
  const int64_t count = a.count[expert];
  const int64_t kept = a.capacity == 0 ? count : min(count, a.capacity);
  return static_cast<int32_t>((kept + a.align - 1) / a.align * a.align);
}

// 3a. By one block: each thread sums a range of experts, the sums are scanned in shared memory.
__device__ inline void write_offsets(const PlanArgs& a) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t range = (a.experts + kThreads - 1) / kThreads;
  const int64_t begin = thread * range, end = min(begin + range, a.experts);
  int32_t total = 0;
  for (int64_t e = begin; e < end; ++e)
    total += kept_rows(a, e);
  __shared__ int32_t sums[kThreads];
  sums[thread] = total;
  __syncthreads();
  for (int step = 1; step < kThreads; step *= 2) {
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
  if (thread == kThreads - 1)
    a.offset[a.experts] = sums[thread];
}

// 3b. Ranks.
__device__ inline void write_ranks(const PlanArgs& a) {
  for_tiles(a, [&](int64_t tile, int32_t* counter) {
    for_assignments(a, tile, [&](int64_t i, int expert, unsigned group) {
      const int32_t earlier = expert >= 0 ? counter[expert] : 0;
      __syncwarp(); // all lanes have read before one counts
      if (expert >= 0 && is_lowest(group))
        counter[expert] = earlier + __popc(group);
      const int32_t rank = earlier + __popc(group & ((1u << lane_id()) - 1));
      const bool kept = expert >= 0 && (a.capacity == 0 || rank < a.capacity);
      if (i < a.assignments)
        a.rank[i] = kept ? rank : -1;
    });
  });
}

// Launches a kernel of kThreads a block with at most `blocks` blocks, all of which run at once.
template <class... Args>
const char* launch_cooperative(void (*kernel)(Args...), int64_t blocks, void* stream,
                               Args... args) {
  int device = 0, processors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0);
  const int64_t most = static_cast<int64_t>(processors) * resident;
  if (error == cudaSuccess) {
    void* pointers[] = {&args...};
    const dim3 grid(static_cast<unsigned>(max(int64_t{1}, min(blocks, most))));
    error = cudaLaunchCooperativeKernel(kernel, grid, dim3(kThreads), pointers, 0,
                                        static_cast<cudaStream_t>(stream));
  }
  if (error != cudaSuccess)
    (void)cudaGetLastError(); // or the next launch would report it again
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Blocks that give every phase of a plan its threads: a warp a tile, a thread an expert.
inline int64_t plan_blocks(const PlanArgs& a) {
  const int64_t warps = rank_tiles(a.assignments, a.experts);
  return max((warps * kWarp + kThreads - 1) / kThreads, (a.experts + kThreads - 1) / kThreads);
}

} // namespace lah::ops::cuda
