// The layout of choices made elsewhere.
#include "ops/cuda/plan.cuh"

namespace lah::ops::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) plan_kernel(PlanArgs a) {
  const auto grid = cooperative_groups::this_grid();
  count_tiles(a);
  grid.sync();
  scan_tiles(a, [](int64_t, int32_t) {});
  grid.sync();
  if (blockIdx.x == 0)
    write_offsets(a);
  write_ranks(a);
}

} // namespace

const char* plan(const PlanArgs& a, void* stream) {
  return launch_cooperative(plan_kernel, plan_blocks(a), stream, a);
}

} // namespace lah::ops::cuda
