// The k best of a token's scores, kept by a warp.
#pragma once

#include "ops/cuda/common.cuh"

namespace lah::ops::cuda {

struct Scored {
  float score;
  int id;
};
constexpr int kNoId = 0x7fffffff;

__device__ inline bool before(const Scored& a, const Scored& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

__device__ inline Scored shuffle(const Scored& x, int lane) {
  return {__shfl_sync(kAllLanes, x.score, lane), __shfl_sync(kAllLanes, x.id, lane)};
}

// The best of all lanes' entries.
__device__ inline Scored warp_best(Scored x) {
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

  // Each lane offers an entry of its own; what can enter is inserted.
  __device__ void offer(const Scored& entry) {
    unsigned entering = __ballot_sync(kAllLanes, entry.score != -INFINITY && before(entry, worst));
    for (; entering != 0; entering &= entering - 1)
      insert(shuffle(entry, __ffs(static_cast<int>(entering)) - 1));
  }
};

// Writes a token's choices: ids and, of those found, score_of(id).
template <class ScoreOf>
__device__ void write_choices(const RouteGridArgs& a, int64_t token, const Best& best,
                              const ScoreOf& score_of) {
  if (lane_id() >= a.k)
    return;
  const int64_t i = token * a.k + lane_id();
  const bool found = best.mine.id != kNoId;
  a.index[i] = found ? best.mine.id : -1;
  static_cast<float*>(a.score)[i] = found ? score_of(best.mine.id) : 0.0f;
}

} // namespace lah::ops::cuda
