// The ops that choose experts: checks and allocation. Schemas are in
// learning_at_home/ops/schemas.py. Functions end in _op, apart from the kernels of the same stem.
#include <algorithm>
#include <tuple>

#include "ops/launch.h"

namespace lah::ops {
namespace {

void check_rows(const char* op, int64_t assignments, int64_t experts, int64_t capacity,
                int64_t align) {
  STD_TORCH_CHECK(capacity >= 0, op, ": capacity must not be negative, is ", capacity);
  STD_TORCH_CHECK(align >= 1 && align <= kMaxRows &&
                      rows_of(assignments, experts, align) <= kMaxRows,
                  op, ": at most ", kMaxRows, " rows, got ", assignments, " choices of ", experts,
                  " experts, align ", align);
}

Tensor new_tile_count(const Tensor& like, int64_t assignments, int64_t experts) {
  return new_empty(like, {like.is_cuda() ? rank_tiles(assignments, experts) : 0, experts},
                   ScalarType::Int);
}

// What route and route_grid return, and their scratch.
struct Routing {
  Tensor index, score, rank, offset, lse, stats;
  Tensor count, tile_count, probability;
  RouteGridArgs args;

  Routing(const char* op, const Tensor& logits, const Grid& grid, int64_t k,
          const MaybeTensor& alive, int64_t capacity, int64_t align, bool want_lse, bool want_stats)
      : index(new_empty(logits, {logits.size(0), k}, ScalarType::Int)),
        score(new_empty(logits, {logits.size(0), k})),
        rank(new_empty(logits, {logits.size(0), k}, ScalarType::Int)),
        offset(new_empty(logits, {grid.experts + 1}, ScalarType::Int)),
        lse(new_empty(logits, {want_lse || want_stats ? logits.size(0) : 0})),
        stats(want_stats ? new_empty(logits, {2, grid.experts}) : new_empty(logits, {0})),
        count(new_empty(logits, {grid.experts}, ScalarType::Int)),
        tile_count(new_tile_count(logits, logits.size(0) * k, grid.experts)),
        probability(
            new_empty(logits, {want_stats ? stats_tiles(logits.size(0)) : 0, grid.experts})),
        args{.grid = grid,
             .logits = logits.const_data_ptr(),
             .alive = check_alive(op, alive, grid, logits),
             .tokens = logits.size(0),
             .k = k,
             .beam = 0,
             .capacity = std::min(capacity, kMaxRows),
             .align = align,
             .index = index.mutable_data_ptr<int32_t>(),
             .rank = rank.mutable_data_ptr<int32_t>(),
             .offset = offset.mutable_data_ptr<int32_t>(),
             .count = count.mutable_data_ptr<int32_t>(),
             .score = score.mutable_data_ptr(),
             .lse = want_lse || want_stats ? lse.mutable_data_ptr() : nullptr,
             .stats = want_stats ? stats.mutable_data_ptr() : nullptr,
             .tile_count = tile_count.mutable_data_ptr<int32_t>(),
             .tile_probability = want_stats ? probability.mutable_data_ptr() : nullptr} {}

  using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
  Outputs outputs() const { return {index, score, rank, offset, lse, stats}; }

  // choose(begin, end) over tokens, then the plan. Only statistics need the tiles one by one.
  template <class Choose> void on_cpu(Scalar dtype, const Choose& choose) const {
    const int64_t tile = stats_tile(args.tokens);
    parallel_for(0, stats_tiles(args.tokens), 1, [&](int64_t begin, int64_t end) {
      const int64_t step = args.stats != nullptr ? 1 : end - begin;
      for (int64_t i = begin; i < end; i += step)
        choose(i * tile, std::min((i + step) * tile, args.tokens));
    });
    cpu::route_plan(args, dtype);
  }
};

Grid check_route(const char* op, const std::vector<int64_t>& sizes, const Tensor& logits, int64_t k,
                 int64_t capacity, int64_t align) {
  const Grid grid = check_grid(op, sizes, logits);
  STD_TORCH_CHECK(k >= 1 && k <= kMaxChoices, op, ": k must be 1 to ", kMaxChoices, ", is ", k);
  check_rows(op, logits.size(0) * k, grid.experts, capacity, align);
  return grid;
}

Score check_score(const char* op, int64_t score) {
  STD_TORCH_CHECK(score == 0 || score == 1, op, ": score must be 0 or 1, is ", score);
  return static_cast<Score>(score);
}

// What a choice on one axis has beside the options of every grid.
struct AxisOptions {
  const void* bias = nullptr;
  Score score = Score::logit;
  int64_t groups = 1, top_groups = 1;
};

Routing::Outputs run_route(const char* op, const Tensor& logits, const Routing& routing,
                           const AxisOptions& options) {
  const bool sums = options.score == Score::sigmoid && routing.args.stats != nullptr;
  Tensor affinity = new_empty(logits, {logits.is_cuda() && sums ? logits.size(0) : 0});
  const RouteArgs args{.axis = routing.args,
                       .bias = options.bias,
                       .score = options.score,
                       .groups = options.groups,
                       .top_groups = options.top_groups,
                       .affinity = affinity.mutable_data_ptr()};
  run(
      op, logits, [&](auto stream) { return cuda::route(args, stream); },
      [&] {
        const Scalar dtype = scalar_of(op, "logits", logits);
        routing.on_cpu(dtype, [&](int64_t begin, int64_t end) {
          cpu::route_axis_tokens(args, dtype, begin, end);
        });
      });
  return routing.outputs();
}

Routing::Outputs route_grid_op(const Tensor& logits, std::vector<int64_t> sizes, int64_t k,
                               MaybeTensor alive, int64_t beam, int64_t capacity, int64_t align,
                               bool want_lse, bool want_stats) {
  const char* op = "route_grid";
  const Grid grid = check_route(op, sizes, logits, k, capacity, align);
  STD_TORCH_CHECK(beam >= 0, op, ": beam must not be negative, is ", beam);
  Routing routing(op, logits, grid, k, alive, capacity, align, want_lse, want_stats);
  if (grid.dims == 1) // nothing to rule out, and no prefixes for a beam
    return run_route(op, logits, routing, {});
  routing.args.beam = beam;
  run(
      op, logits, [&](auto stream) { return cuda::route_grid(routing.args, stream); },
      [&] {
        const Scalar dtype = scalar_of(op, "logits", logits);
        routing.on_cpu(dtype, [&](int64_t begin, int64_t end) {
          cpu::route_tokens(routing.args, dtype, begin, end);
        });
      });
  return routing.outputs();
}

Routing::Outputs route_op(const Tensor& logits, int64_t k, MaybeTensor alive, MaybeTensor bias,
                          int64_t score, int64_t groups, int64_t top_groups, int64_t capacity,
                          int64_t align, bool want_lse, bool want_stats) {
  const char* op = "route";
  check_shape(op, "logits", logits, {kAny, kAny}, logits);
  const int64_t experts = logits.size(1);
  const Grid grid = check_route(op, {experts}, logits, k, capacity, align);
  STD_TORCH_CHECK(groups >= 1 && groups <= kMaxGroups && experts % groups == 0, op,
                  ": groups must be 1 to ", kMaxGroups, " and divide ", experts, " experts, is ",
                  groups);
  STD_TORCH_CHECK(top_groups >= 1 && top_groups <= groups, op, ": top_groups must be 1 to ", groups,
                  ", is ", top_groups);
  if (bias) {
    check_shape(op, "bias", *bias, {experts}, logits);
    check_dtype(op, "bias", *bias, logits.scalar_type());
  }
  const Routing routing(op, logits, grid, k, alive, capacity, align, want_lse, want_stats);
  return run_route(op, logits, routing,
                   {data_or_null(bias), check_score(op, score), groups, top_groups});
}

std::tuple<Tensor, Tensor, Tensor> plan_op(const Tensor& index, int64_t experts, int64_t capacity,
                                           int64_t align) {
  const char* op = "plan";
  check_shape(op, "index", index, {kAny, kAny}, index);
  check_dtype(op, "index", index, ScalarType::Int);
  STD_TORCH_CHECK(experts >= 1 && experts <= kMaxExperts, op, ": experts must be 1 to ",
                  kMaxExperts, ", is ", experts);
  check_rows(op, index.numel(), experts, capacity, align);
  Tensor rank = new_empty(index, {index.size(0), index.size(1)});
  Tensor offset = new_empty(index, {experts + 1});
  Tensor count = new_empty(index, {experts});
  Tensor tile_count = new_tile_count(index, index.numel(), experts);
  const PlanArgs args{.index = index.const_data_ptr<int32_t>(),
                      .assignments = index.numel(),
                      .experts = experts,
                      .capacity = std::min(capacity, kMaxRows),
                      .align = align,
                      .rank = rank.mutable_data_ptr<int32_t>(),
                      .offset = offset.mutable_data_ptr<int32_t>(),
                      .count = count.mutable_data_ptr<int32_t>(),
                      .tile_count = tile_count.mutable_data_ptr<int32_t>()};
  run(
      op, index, [&](auto stream) { return cuda::plan(args, stream); }, [&] { cpu::plan(args); });
  return {rank, offset, count};
}

Tensor route_backward_op(MaybeTensor grad_score, MaybeTensor grad_lse, MaybeTensor grad_stats,
                         const Tensor& logits, std::vector<int64_t> sizes, const Tensor& index,
                         const Tensor& lse, MaybeTensor alive, int64_t score) {
  const char* op = "route_backward";
  const Grid grid = check_grid(op, sizes, logits);
  const int64_t tokens = logits.size(0);
  const bool sigmoid = check_score(op, score) == Score::sigmoid;
  STD_TORCH_CHECK(!sigmoid || grid.dims == 1, op, ": sigmoid scores need a grid of one axis, has ",
                  grid.dims);
  check_shape(op, "index", index, {tokens, kAny}, logits);
  const auto check_grad = [&](const char* name, const Tensor& grad,
                              std::initializer_list<int64_t> shape) {
    check_shape(op, name, grad, shape, logits);
    check_dtype(op, name, grad, logits.scalar_type());
  };
  if (grad_score)
    check_grad("grad_score", *grad_score, {tokens, index.size(1)});
  if (grad_lse)
    check_grad("grad_lse", *grad_lse, {tokens});
  if (grad_stats)
    check_grad("grad_stats", *grad_stats, {2, grid.experts});
  if (grad_lse || grad_stats)
    check_grad("lse", lse, {tokens});

  Tensor grad_logits = new_empty(logits, {tokens, grid.logits}, logits.scalar_type());
  const RouteBackwardArgs args{.grid = grid,
                               .grad_score = data_or_null(grad_score),
                               .grad_lse = data_or_null(grad_lse),
                               .grad_stats = data_or_null(grad_stats),
                               .logits = logits.const_data_ptr(),
                               .index = index.const_data_ptr<int32_t>(),
                               .alive = check_alive(op, alive, grid, logits),
                               .lse = lse.const_data_ptr(),
                               .tokens = tokens,
                               .choices = index.size(1),
                               .grad_logits = grad_logits.mutable_data_ptr()};
  run(
      op, logits,
      [&](auto stream) {
        return sigmoid ? cuda::route_axis_backward(args, stream)
                       : cuda::route_backward(args, stream);
      },
      [&] {
        const Scalar dtype = scalar_of(op, "logits", logits);
        parallel_for(0, tokens, kTokenTile, [&](int64_t begin, int64_t end) {
          sigmoid ? cpu::route_axis_backward(args, dtype, begin, end)
                  : cpu::route_backward(args, dtype, begin, end);
        });
      });
  return grad_logits;
}

template <class Library> void implement(Library& library) {
  library.impl("route_grid", TORCH_BOX(&route_grid_op));
  library.impl("route", TORCH_BOX(&route_op));
  library.impl("plan", TORCH_BOX(&plan_op));
  library.impl("route_backward", TORCH_BOX(&route_backward_op));
}

} // namespace
} // namespace lah::ops

LAH_REGISTER_OPS(lah::ops::implement)
