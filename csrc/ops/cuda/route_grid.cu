// Exact top-k of a product grid, a warp a token.
#include "ops/cuda/grid_scores.cuh"

namespace lah::ops::cuda {
namespace {

struct Scored {
  float score;
  int id;
};
constexpr int kNoId = 0x7fffffff;

__device__ bool before(const Scored& a, const Scored& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

__device__ Scored shuffle(const Scored& x, int lane) {
  return {__shfl_sync(kAllLanes, x.score, lane), __shfl_sync(kAllLanes, x.id, lane)};
}

// The best of all lanes' entries.
__device__ Scored warp_best(Scored x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Scored other{__shfl_xor_sync(kAllLanes, x.score, step),
                       __shfl_xor_sync(kAllLanes, x.id, step)};
    if (before(other, x))
      x = other;
  }
  return x;
}

// The 32 best experts that were offered, lane j holding the j-th.
struct Best {
  Scored mine{-INFINITY, kNoId};
  Scored worst{-INFINITY, kNoId}; // the k-th
  int k;

  __device__ explicit Best(int choices) : k(choices) {}

  // All lanes offer the same entry.
  __device__ void insert(const Scored& entry) {
    const int place = __popc(__ballot_sync(kAllLanes, before(mine, entry)));
    const Scored above{__shfl_up_sync(kAllLanes, mine.score, 1),
                       __shfl_up_sync(kAllLanes, mine.id, 1)};
    if (lane_id() == place)
      mine = entry;
    else if (lane_id() > place)
      mine = above;
    worst = shuffle(mine, k - 1);
  }
};

// Every usable expert of a row that can enter is inserted.
__device__ void scan_row(const RouteGridArgs& a, const GridView& view, const float* logits,
                         const Scored& row, Best& best) {
  for (int first = 0; first < view.columns; first += kWarp) {
    const int column = first + lane_id();
    Scored entry{-INFINITY, row.id * view.columns + column};
    if (column < view.columns && is_alive(a.alive, entry.id))
      entry.score = finite_or_void(row.score + logits[view.first_column + column]);
    unsigned entering =
        __ballot_sync(kAllLanes, entry.score != -INFINITY && before(entry, best.worst));
    for (; entering != 0; entering &= entering - 1)
      best.insert(shuffle(entry, __ffs(static_cast<int>(entering)) - 1));
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

__device__ Best choose(const RouteGridArgs& a, const GridView& view, const float* logits) {
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

// logsumexp over usable experts; 0 if there is none
__device__ float log_sum_exp(const RouteGridArgs& a, const GridView& view, const float* logits) {
  const int experts = view.rows * view.columns;
  float largest = -INFINITY;
  for (int e = lane_id(); e < experts; e += kWarp)
    if (is_alive(a.alive, e))
      largest = fmaxf(largest, finite_or_void(view.score(logits, e)));
  largest = warp_max(largest);
  if (largest == -INFINITY)
    return 0.0f;
  float total = 0.0f;
  for (int e = lane_id(); e < experts; e += kWarp)
    total += view.probability(logits, a.alive, e, largest);
  return largest + logf(warp_sum(total));
}

__global__ void __launch_bounds__(kThreads) route_kernel(RouteGridArgs a) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_of_block();
  if (token >= a.tokens)
    return;
  const GridView view(a.grid);
  const float* logits = static_cast<const float*>(a.logits) + token * a.grid.logits;
  const Best best = choose(a, view, logits);
  if (lane_id() < a.k) {
    const int64_t i = token * a.k + lane_id();
    const bool found = best.mine.id != kNoId;
    a.index[i] = found ? best.mine.id : -1;
    static_cast<float*>(a.score)[i] = found ? best.mine.score : 0.0f;
  }
  if (a.lse == nullptr)
    return;
  const float lse = log_sum_exp(a, view, logits);
  if (lane_id() == 0)
    static_cast<float*>(a.lse)[token] = lse;
}

// Sum of an expert's probabilities over a tile of tokens: a thread an expert, so that no sum needs
// an atomic.
__global__ void __launch_bounds__(kThreads) probability_kernel(RouteGridArgs a, int64_t tile) {
  const int expert = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (expert >= a.grid.experts)
    return;
  const GridView view(a.grid);
  const int64_t begin = blockIdx.y * tile, end = min(begin + tile, a.tokens);
  float total = 0.0f;
  for (int64_t t = begin; t < end; ++t)
    total += view.probability(static_cast<const float*>(a.logits) + t * a.grid.logits, a.alive,
                              expert, static_cast<const float*>(a.lse)[t]);
  static_cast<float*>(a.tile_probability)[blockIdx.y * a.grid.experts + expert] = total;
}

__global__ void __launch_bounds__(kThreads) stats_kernel(RouteGridArgs a, int64_t tiles) {
  const int64_t expert = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (expert >= a.grid.experts)
    return;
  float total = 0.0f;
  for (int64_t i = 0; i < tiles; ++i)
    total += static_cast<const float*>(a.tile_probability)[i * a.grid.experts + expert];
  auto* stats = static_cast<float*>(a.stats);
  stats[expert] = static_cast<float>(a.count[expert]);
  stats[a.grid.experts + expert] = a.tokens == 0 ? 0.0f : total / static_cast<float>(a.tokens);
}

} // namespace

const char* route_grid(const RouteGridArgs& a, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.tokens > 0) {
    route_kernel<<<blocks_for(a.tokens, kThreads / kWarp), kThreads, 0, stream>>>(a);
    if (const char* error = launch_error())
      return error;
  }
  if (const char* error = plan(plan_of(a), stream))
    return error;
  if (a.stats == nullptr)
    return nullptr;
  const unsigned expert_blocks = blocks_for(a.grid.experts, kThreads);
  if (a.tokens > 0) {
    const dim3 blocks(expert_blocks, static_cast<unsigned>(stats_tiles(a.tokens)));
    probability_kernel<<<blocks, kThreads, 0, stream>>>(a, stats_tile(a.tokens));
    if (const char* error = launch_error())
      return error;
  }
  stats_kernel<<<expert_blocks, kThreads, 0, stream>>>(a, stats_tiles(a.tokens));
  return launch_error();
}

} // namespace lah::ops::cuda
