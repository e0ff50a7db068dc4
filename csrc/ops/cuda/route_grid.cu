// Exact top-k of a product grid.
#include "ops/cuda/best.cuh"
#include "ops/cuda/grid_scores.cuh"
#include "ops/cuda/route_launch.cuh"

namespace lah::ops::cuda {
namespace {

// Offers every usable expert of a row.
__device__ void scan_row(const RouteGridArgs& a, const GridView& view, const float* logits,
                         const Scored& row, Best& best) {
  for (int first = 0; first < view.columns; first += kWarp) {
    const int column = first + lane_id();
    Scored entry{-INFINITY, row.id * view.columns + column};
    if (column < view.columns && is_alive(a.alive, entry.id))
      entry.score = finite_or_void(row.score + logits[view.first_column + column]);
    best.offer(entry);
  }
}

__device__ float best_column(const GridView& view, const float* logits) {
  float best = -INFINITY;
  for (int c = lane_id(); c < view.columns; c += kWarp)
    best = fmaxf(best, finite_or_void(logits[view.first_column + c]));
  return warp_max(best);
}

// The best row after `last` that has an expert alive and, in an exact search, one that may enter
// the k best. Rounded addition is monotone: no score of the row exceeds its score plus the best
// column's; one equal to the k-th enters only under a lower id.
__device__ Scored next_row(const RouteGridArgs& a, const GridView& view, const float* logits,
                           float column, const Scored& last, const Scored& worst) {
  Scored best{-INFINITY, kNoId};
  for (int r = lane_id(); r < view.rows; r += kWarp) {
    const Scored row{finite_or_void(view.row_score(logits, r)), r};
    if (row.score == -INFINITY || !before(last, row) || !before(row, best))
      continue;
    const Scored bound{row.score + column, r * view.columns};
    if (a.beam == 0 && !before(bound, worst))
      continue;
    if (any_alive(a.alive, r * view.columns, view.columns))
      best = row;
  }
  return warp_best(best);
}

__device__ Best best_of(const RouteGridArgs& a, const GridView& view, const float* logits) {
  Best best(static_cast<int>(a.k));
  const float column = best_column(view, logits);
  if (column == -INFINITY)
    return best;
  Scored row{INFINITY, -1};
  for (int64_t visited = 0; a.beam == 0 || visited < a.beam; ++visited) {
    row = next_row(a, view, logits, column, row, best.worst);
    if (row.id == kNoId)
      break;
    scan_row(a, view, logits, row, best);
  }
  return best;
}

struct ChooseFromGrid {
  RouteGridArgs a;

  // A warp a token.
  __device__ void choose(int64_t token) const {
    const GridView view(a.grid);
    const float* logits = static_cast<const float*>(a.logits) + token * a.grid.logits;
    write_choices(a, token, best_of(a, view, logits),
                  [&](int id) { return view.score(logits, id); });
    if (a.lse == nullptr)
      return;
    const float lse = log_sum_exp(a, view, logits);
    if (lane_id() == 0)
      static_cast<float*>(a.lse)[token] = lse;
  }
  // Of an expert, once the token's lse is known.
  __device__ float probability(int64_t token, int expert) const {
    return GridView(a.grid).probability(static_cast<const float*>(a.logits) + token * a.grid.logits,
                                        a.alive, expert, static_cast<const float*>(a.lse)[token]);
  }
};

} // namespace

const char* route_grid(const RouteGridArgs& a, void* stream) {
  return route_in_one_launch(ChooseFromGrid{a}, a, stream);
}

} // namespace lah::ops::cuda
