// From chosen experts to rows: counts, ranks and offsets, without atomics and in token order.
#pragma once

#include "ops/cuda/common.cuh"

namespace lah::ops::cuda {

// Fills a.count, a.rank and a.offset from a.index.
const char* route_plan(const RouteGridArgs& a, cudaStream_t stream);

} // namespace lah::ops::cuda
