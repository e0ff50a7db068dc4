// The kernels of every op, without torch: plain pointers to contiguous arrays, checked by
// routing.cpp, movement.cpp, quantized.cpp and activation.cpp.
// Meanings, shapes and the words token, choice, row, live and void are those of
// learning_at_home/ops/reference.py.
//
// CPU functions work on the tokens [begin, end), may run concurrently on disjoint ranges, and throw
// nothing but bad_alloc. CUDA functions enqueue on a stream and report a failed launch by a
// message, or null.
#pragma once

#include <cstdint>

#include "base/limits.hpp"

#ifdef __CUDACC__
#define LAH_HOST_DEVICE __host__ __device__
#else
#define LAH_HOST_DEVICE
#endif

namespace lah::ops {

constexpr int64_t kMaxChoices = 32; // one lane of a warp for each choice
constexpr int64_t kMaxGroups = 32;  // and for each group
constexpr auto kMaxGridDims = static_cast<int64_t>(Limits::kGridDims);
constexpr auto kMaxExperts = static_cast<int64_t>(Limits::kGridExperts);
constexpr int64_t kTokenTile = 64; // least tokens of one unit of work

enum class Scalar : int32_t { f32, f64, bf16, f16 };
enum class Score : int32_t { logit, sigmoid };
enum class Normalize : int32_t { softmax, sum, none, ones }; // ones: dispatch_backward, no scores

// Where the rows of an assignment (t, j) are. With rows == tokens * choices the plan is packed, as
// align 1 makes it: every row before offset[experts] has an owner.
struct Plan {
  const int32_t* index;  // [tokens, choices]
  const int32_t* rank;   // [tokens, choices]
  const int32_t* offset; // [experts + 1]
  const bool* ok;        // [rows], or null: all rows are ok
  int64_t tokens, choices, experts, rows;
};

struct Grid {
  int64_t dims;
  int64_t size[kMaxGridDims];
  int64_t logits;  // sum of sizes: logits of one token
  int64_t experts; // product of sizes
};

struct RouteGridArgs {
  Grid grid;
  const void* logits;   // f32 (CPU also f64) [tokens, grid.logits]
  const int32_t* alive; // bitmap of grid.experts bits, or null
  int64_t tokens, k, beam, capacity, align;
  int32_t *index, *rank;  // [tokens, k]
  int32_t* offset;        // [experts + 1]
  int32_t* count;         // [experts], assignments before capacity
  void* score;            // [tokens, k]
  void* lse;              // [tokens], or null
  void* stats;            // [2, experts], or null
  int32_t* tile_count;    // CUDA: scratch [rank_tiles, experts]
  void* tile_probability; // scratch [stats_tiles, experts], with stats
};

// One axis: a choice among keys, score + bias, within the best groups of experts.
struct RouteArgs {
  RouteGridArgs axis;
  const void* bias; // [experts], or null
  Score score;
  int64_t groups, top_groups;
  void* affinity; // CUDA: scratch [tokens], sums of sigmoids; with stats of sigmoids
};

struct PlanArgs {
  const int32_t* index; // [assignments]
  int64_t assignments, experts, capacity, align;
  int32_t *rank, *offset, *count; // as in RouteGridArgs
  int32_t* tile_count;            // CUDA: scratch [rank_tiles, experts]
};

struct RouteBackwardArgs {
  Grid grid;
  const void *grad_score, *grad_lse, *grad_stats; // each may be null
  const void* logits;
  const int32_t* index;
  const int32_t* alive;
  const void* lse;
  int64_t tokens, choices;
  void* grad_logits;
};

struct DispatchArgs {
  Plan plan;
  const void* x;     // [tokens, row_bytes]
  int64_t row_bytes; // of any dtype
  void* rows;        // [plan.rows, row_bytes]
  int32_t* source;   // [plan.rows]
};

// Rows in few bits: `block` consecutive elements of a row share one of its `blocks` scales.
// bfloat16 has none: blocks is 0.
enum class Quantized : int32_t { int8, e4m3, bf16 };

struct DispatchQuantizedArgs {
  Plan plan;
  const void* x; // [tokens, hidden]
  int64_t hidden, block, blocks;
  void* rows;      // [plan.rows, hidden]
  float* scale;    // [plan.rows, blocks]
  int32_t* source; // [plan.rows]
};

struct DequantizeArgs {
  const void* rows;   // [count, hidden]
  const float* scale; // [count, blocks]
  int64_t count, hidden, block, blocks;
  void* out; // [count, hidden]
};

struct CombineArgs {
  Plan plan;
  const void* rows;
  const void* score;    // null with Normalize::ones
  const void* residual; // or null
  int64_t hidden;
  Normalize normalize;
  void* out;
  void* weight; // null with Normalize::ones
};

struct CombineBackwardArgs {
  Plan plan;
  const void *grad, *rows, *score, *weight;
  int64_t hidden;
  Normalize normalize;
  void *grad_rows, *grad_score;
  int32_t* source; // scratch [plan.rows]: which rows have an owner
};

struct SwigluArgs {
  const void* x;      // [rows, 2 * width]: gate, up
  const void* weight; // [rows], or null: ones
  int64_t rows, width;
  void* out; // [rows, width]
};

struct SwigluBackwardArgs {
  const void *grad, *x, *weight;
  int64_t rows, width;
  void* grad_x;
  void* grad_weight; // [rows], or null
};

LAH_HOST_DEVICE inline PlanArgs plan_of(const RouteGridArgs& a) {
  return {a.index, a.tokens * a.k, a.grid.experts, a.capacity,  a.align,
          a.rank,  a.offset,       a.count,        a.tile_count};
}

// Tiles whose partial sums are added in order: they depend on shapes alone, so that no sum depends
// on the number of threads.
LAH_HOST_DEVICE inline int64_t stats_tile(int64_t tokens) {
  const int64_t tile = (tokens + kTokenTile - 1) / kTokenTile; // at most 64 tiles
  return tile < kTokenTile ? kTokenTile : tile;
}
LAH_HOST_DEVICE inline int64_t stats_tiles(int64_t tokens) {
  return (tokens + stats_tile(tokens) - 1) / stats_tile(tokens);
}

// Tiles of consecutive assignments whose counts CUDA takes at once: enough to fill a device, and at
// most 64 MiB of counters.
LAH_HOST_DEVICE inline int64_t rank_tile(int64_t assignments, int64_t experts) {
  const int64_t most = experts <= 32768 ? 512 : (int64_t{16} << 20) / experts;
  const int64_t tile = ((assignments + most - 1) / most + 31) / 32 * 32;
  return tile < 256 ? 256 : tile;
}
LAH_HOST_DEVICE inline int64_t rank_tiles(int64_t assignments, int64_t experts) {
  const int64_t tile = rank_tile(assignments, experts);
  return (assignments + tile - 1) / tile;
}

// The rows that hold `assignments` however they fall on `experts`, when each expert starts at a
// multiple of `align`.
LAH_HOST_DEVICE inline int64_t rows_of(int64_t assignments, int64_t experts, int64_t align) {
  return align == 1 ? assignments
                    : (assignments + experts * (align - 1) + align - 1) / align * align;
}

namespace cpu {
// route_grid, first over tokens: index, score, lse; and, over tiles of stats_tile tokens,
// tile_probability
void route_tokens(const RouteGridArgs& args, Scalar dtype, int64_t begin, int64_t end);
// route, in the same way
void route_axis_tokens(const RouteArgs& args, Scalar dtype, int64_t begin, int64_t end);
// then, of both, once: rank, offset, count, stats
void route_plan(const RouteGridArgs& args, Scalar dtype);
void plan(const PlanArgs& args);
void route_backward(const RouteBackwardArgs& args, Scalar dtype, int64_t begin, int64_t end);
// of sigmoid scores, on one axis
void route_axis_backward(const RouteBackwardArgs& args, Scalar dtype, int64_t begin, int64_t end);
// first over tokens, then clear_unowned over rows (and over scales)
void dispatch(const DispatchArgs& args, int64_t begin, int64_t end);
void clear_unowned(void* rows, const int32_t* source, int64_t row_bytes, int64_t begin,
                   int64_t end);
void dispatch_quantized(const DispatchQuantizedArgs& args, Scalar dtype, Quantized quantized,
                        int64_t begin, int64_t end);
// over rows; dtype is that of out
void dequantize(const DequantizeArgs& args, Scalar dtype, Quantized quantized, int64_t begin,
                int64_t end);
void combine(const CombineArgs& args, Scalar dtype, int64_t begin, int64_t end);
// first over tokens, then clear_unowned over rows
void combine_backward(const CombineBackwardArgs& args, Scalar dtype, int64_t begin, int64_t end);
// over rows
void swiglu(const SwigluArgs& args, Scalar dtype, int64_t begin, int64_t end);
void swiglu_backward(const SwigluBackwardArgs& args, Scalar dtype, int64_t begin, int64_t end);
} // namespace cpu

namespace cuda { // defined where LAH_WITH_CUDA is
const char* route_grid(const RouteGridArgs& args, void* stream);
const char* route(const RouteArgs& args, void* stream);
const char* plan(const PlanArgs& args, void* stream);
const char* route_backward(const RouteBackwardArgs& args, void* stream);
const char* route_axis_backward(const RouteBackwardArgs& args, void* stream);
const char* dispatch(const DispatchArgs& args, void* stream);
const char* dispatch_quantized(const DispatchQuantizedArgs& args, Scalar dtype, Quantized quantized,
                               void* stream);
const char* dequantize(const DequantizeArgs& args, Scalar dtype, Quantized quantized, void* stream);
const char* combine(const CombineArgs& args, Scalar dtype, void* stream);
const char* combine_backward(const CombineBackwardArgs& args, Scalar dtype, void* stream);
const char* swiglu(const SwigluArgs& args, Scalar dtype, void* stream);
const char* swiglu_backward(const SwigluBackwardArgs& args, Scalar dtype, void* stream);
} // namespace cuda

} // namespace lah::ops
