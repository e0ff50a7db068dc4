// Choosing, planning and statistics in one launch.
#pragma once

#include "ops/cuda/plan.cuh"

namespace lah::ops::cuda {

// Sum of an expert's probabilities over a tile of tokens: a thread an expert and tile, so that no
// sum needs an atomic.
template <class Chooser>
__device__ void sum_probabilities(const Chooser& chooser, const RouteGridArgs& a) {
  const int64_t tile = stats_tile(a.tokens), work = stats_tiles(a.tokens) * a.grid.experts;
  for (int64_t i = thread_of_grid(); i < work; i += threads_of_grid()) {
    const int64_t begin = i / a.grid.experts * tile, end = min(begin + tile, a.tokens);
    const int expert = static_cast<int>(i % a.grid.experts);
    float total = 0.0f;
    for (int64_t t = begin; t < end; ++t)
      total += chooser.probability(t, expert);
    static_cast<float*>(a.tile_probability)[i] = total;
  }
}

__device__ inline void write_stats(const RouteGridArgs& a, int64_t expert, int32_t count) {
  float total = 0.0f;
  for (int64_t i = 0; i < stats_tiles(a.tokens); ++i)
    total += static_cast<const float*>(a.tile_probability)[i * a.grid.experts + expert];
  auto* stats = static_cast<float*>(a.stats);
  stats[expert] = static_cast<float>(count);
  stats[a.grid.experts + expert] = a.tokens == 0 ? 0.0f : total / static_cast<float>(a.tokens);
}

// chooser.choose(token), by a warp, writes index, score and lse; chooser.probability(token, expert)
// may then read lse.
template <class Chooser>
__global__ void __launch_bounds__(kThreads, 6) route_kernel(Chooser chooser, RouteGridArgs a) {
  const auto grid = cooperative_groups::this_grid();
  const PlanArgs plan = plan_of(a);
  for (int64_t t = thread_of_grid() / kWarp; t < a.tokens; t += threads_of_grid() / kWarp)
    chooser.choose(t);
  grid.sync();
  count_tiles(plan);
  if (a.stats != nullptr)
    sum_probabilities(chooser, a);
  grid.sync();
  scan_tiles(plan, [&](int64_t expert, int32_t count) {
    if (a.stats != nullptr)
      write_stats(a, expert, count);
  });
  grid.sync();
  if (blockIdx.x == 0)
    write_offsets(plan);
  write_ranks(plan);
}

template <class Chooser>
const char* route_in_one_launch(const Chooser& chooser, const RouteGridArgs& a, void* stream) {
  const int64_t blocks = max(plan_blocks(plan_of(a)), (a.tokens * kWarp + kThreads - 1) / kThreads);
  return launch_cooperative(route_kernel<Chooser>, blocks, stream, chooser, a);
}

} // namespace lah::ops::cuda
