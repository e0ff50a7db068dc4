// Ranks, offsets and statistics of what was chosen.
#include "ops/cpu/simd.h"

namespace lah::ops::cpu {
namespace {

// mean over tokens of the softmax; the tiles are added in order
template <class real> void finish_stats(const RouteGridArgs& a) {
  auto* stats = static_cast<real*>(a.stats);
  const auto* tile = static_cast<const real*>(a.tile_probability);
  for (int64_t e = 0; e < a.grid.experts; ++e) {
    stats[e] = static_cast<real>(a.count[e]);
    real total = 0;
    for (int64_t i = 0; i < stats_tiles(a.tokens); ++i)
      total += tile[i * a.grid.experts + e];
    stats[a.grid.experts + e] = a.tokens == 0 ? real{0} : total / static_cast<real>(a.tokens);
  }
}

} // namespace

// One thread, in token order: about a nanosecond an assignment, where a parallel histogram would
// have to clear and scan one row of counters per tile. An expert out of range reads as void.
void plan(const PlanArgs& a) {
  for (int64_t e = 0; e < a.experts; ++e)
    a.count[e] = 0;
  const auto limit =
      static_cast<int32_t>(a.capacity == 0 ? std::numeric_limits<int32_t>::max() : a.capacity);
  for (int64_t i = 0; i < a.assignments; ++i) {
    const int32_t expert = a.index[i];
    const int32_t rank = expert < 0 || expert >= a.experts ? -1 : a.count[expert]++;
    a.rank[i] = rank < limit ? rank : -1;
  }
  int64_t next = 0;
  for (int64_t e = 0; e < a.experts; ++e) {
    a.offset[e] = static_cast<int32_t>(next);
    const int32_t kept = a.count[e] < limit ? a.count[e] : limit;
    next += a.align == 1 ? kept : (kept + a.align - 1) / a.align * a.align; // divisions are slow
  }
  a.offset[a.experts] = static_cast<int32_t>(next);
}

void route_plan(const RouteGridArgs& a, Scalar dtype) {
  plan(plan_of(a));
  if (a.stats == nullptr)
    return;
  dtype == Scalar::f64 ? finish_stats<double>(a) : finish_stats<float>(a);
}

} // namespace lah::ops::cpu
