// The ops: allocation and the choice of device. Schemas are in
// learning_at_home/ops/schemas.py.
//
// Everything is checked before work starts: an exception inside parallel_for would lose its
// message. Functions end in _op, apart from the kernels of the same stem.
#include <algorithm>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "ops/checks.h"

// Only a torch with CUDA has it.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace lah::ops {
namespace {

using torch::stable::new_empty;
using torch::stable::parallel_for;

#ifdef LAH_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// Runs an op where its tensors are: on_cuda(stream) on the current stream of the device of `like`,
// or on_cpu(). on_cuda takes `auto`, so that a CPU-only build never instantiates it.
template <class OnCuda, class OnCpu>
void run(const char* op, const Tensor& like, const OnCuda& on_cuda, const OnCpu& on_cpu) {
  if constexpr (kWithCuda) {
    if (like.is_cuda()) {
      STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, op,
                      ": this torch has no CUDA");
      const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
      void* stream = nullptr;
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
      const char* error = on_cuda(stream);
      STD_TORCH_CHECK(error == nullptr, op, ": CUDA: ", error);
      return;
    }
  }
  on_cpu();
}

// --- routing ------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
route_grid_op(const Tensor& logits, std::vector<int64_t> sizes, int64_t k, MaybeTensor alive,
              int64_t beam, int64_t capacity, int64_t align, bool want_lse, bool want_stats) {
  const char* op = "route_grid";
  const Grid grid = check_grid(op, sizes, logits);
  const int64_t tokens = logits.size(0);
  STD_TORCH_CHECK(k >= 1 && k <= kMaxChoices, op, ": k must be 1 to ", kMaxChoices, ", is ", k);
  STD_TORCH_CHECK(beam >= 0 && capacity >= 0, op, ": beam and capacity must not be negative");
  STD_TORCH_CHECK(
      align >= 1 && align <= kMaxRows && rows_of(tokens * k, grid.experts, align) <= kMaxRows, op,
      ": at most ", kMaxRows, " rows, got ", tokens, " tokens, k ", k, ", align ", align);

  const bool with_lse = want_lse || want_stats;
  const ScalarType real = logits.scalar_type();
  Tensor index = new_empty(logits, {tokens, k}, ScalarType::Int);
  Tensor rank = new_empty(logits, {tokens, k}, ScalarType::Int);
  Tensor offset = new_empty(logits, {grid.experts + 1}, ScalarType::Int);
  Tensor score = new_empty(logits, {tokens, k}, real);
  Tensor lse = new_empty(logits, {with_lse ? tokens : 0}, real);
  Tensor stats =
      want_stats ? new_empty(logits, {2, grid.experts}, real) : new_empty(logits, {0}, real);
  Tensor count = new_empty(logits, {grid.experts}, ScalarType::Int);
  const int64_t tiles = stats_tiles(tokens);
  Tensor probability = new_empty(logits, {want_stats ? tiles : 0, grid.experts}, real);
  const int64_t count_tiles = logits.is_cuda() ? rank_tiles(tokens * k, grid.experts) : 0;
  Tensor tile_count = new_empty(logits, {count_tiles, grid.experts}, ScalarType::Int);

  const RouteGridArgs args{.grid = grid,
                           .logits = logits.const_data_ptr(),
                           .alive = check_alive(op, alive, grid, logits),
                           .tokens = tokens,
                           .k = k,
                           .beam = beam,
                           .capacity = std::min(capacity, kMaxRows),
                           .align = align,
                           .index = index.mutable_data_ptr<int32_t>(),
                           .rank = rank.mutable_data_ptr<int32_t>(),
                           .offset = offset.mutable_data_ptr<int32_t>(),
                           .count = count.mutable_data_ptr<int32_t>(),
                           .score = score.mutable_data_ptr(),
                           .lse = with_lse ? lse.mutable_data_ptr() : nullptr,
                           .stats = want_stats ? stats.mutable_data_ptr() : nullptr,
                           .tile_count = tile_count.mutable_data_ptr<int32_t>(),
                           .tile_probability =
                               want_stats ? probability.mutable_data_ptr() : nullptr};
  run(
      op, logits, [&](auto stream) { return cuda::route_grid(args, stream); },
      [&] {
        const Scalar dtype = scalar_of(op, "logits", logits);
        const int64_t tile = stats_tile(tokens);
        parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
          const int64_t step =
              want_stats ? 1 : end - begin; // only statistics need the tiles one by one
          for (int64_t i = begin; i < end; i += step)
            cpu::route_tokens(args, dtype, i * tile, std::min((i + step) * tile, tokens));
        });
        cpu::route_plan(args, dtype);
      });
  return {index, score, rank, offset, lse, stats};
}

Tensor route_backward_op(MaybeTensor grad_score, MaybeTensor grad_lse, MaybeTensor grad_stats,
                         const Tensor& logits, std::vector<int64_t> sizes, const Tensor& index,
                         const Tensor& lse, MaybeTensor alive) {
  const char* op = "route_backward";
  const Grid grid = check_grid(op, sizes, logits);
  const int64_t tokens = logits.size(0);
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
  Tensor slope =
      new_empty(logits, {grad_stats && logits.is_cuda() ? tokens : 0}, logits.scalar_type());
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
                               .grad_logits = grad_logits.mutable_data_ptr(),
                               .slope = slope.mutable_data_ptr()};
  run(
      op, logits, [&](auto stream) { return cuda::route_backward(args, stream); },
      [&] {
        const Scalar dtype = scalar_of(op, "logits", logits);
        parallel_for(0, tokens, kTokenTile, [&](int64_t begin, int64_t end) {
          cpu::route_backward(args, dtype, begin, end);
        });
      });
  return grad_logits;
}

// Most often every row has an owner, or all but the last ones: start at the first that has none.
void clear_unowned(void* rows, const int32_t* source, int64_t count, int64_t row_bytes) {
  const int64_t first = std::find(source, source + count, -1) - source;
  parallel_for(first, count, kTokenTile, [&](int64_t begin, int64_t end) {
    cpu::clear_unowned(rows, source, row_bytes, begin, end);
  });
}

// --- movement ------------------------------------------------------------

std::tuple<Tensor, Tensor> dispatch_op(const Tensor& x, const Tensor& index, const Tensor& rank,
                                       const Tensor& offset, int64_t align) {
  const char* op = "dispatch";
  check_shape(op, "x", x, {kAny, kAny}, x);
  STD_TORCH_CHECK(align >= 1 && align <= kMaxRows, op, ": align must be positive, is ", align);
  const int64_t r = rows_of(index.numel(), offset.numel() - 1, align);
  const Plan plan = check_plan(op, index, rank, offset, std::nullopt, r, x);
  STD_TORCH_CHECK(x.size(0) == plan.tokens, op, ": x has ", x.size(0), " tokens, index has ",
                  plan.tokens);

  Tensor rows = new_empty(x, {r, x.size(1)});
  Tensor source = new_empty(index, {r});
  const DispatchArgs args{.plan = plan,
                          .x = x.const_data_ptr(),
                          .row_bytes = x.size(1) * static_cast<int64_t>(x.element_size()),
                          .rows = rows.mutable_data_ptr(),
                          .source = source.mutable_data_ptr<int32_t>()};
  run(
      op, x, [&](auto stream) { return cuda::dispatch(args, stream); },
      [&] {
        std::fill_n(args.source, r, -1);
        parallel_for(0, plan.tokens, kTokenTile,
                     [&](int64_t begin, int64_t end) { cpu::dispatch(args, begin, end); });
        clear_unowned(args.rows, args.source, r, args.row_bytes);
      });
  return {rows, source};
}

// --- combining ------------------------------------------------------------

void run_combine(const char* op, const Tensor& rows, const CombineArgs& args) {
  const Scalar dtype = scalar_of(op, "rows", rows);
  run(
      op, rows, [&](auto stream) { return cuda::combine(args, dtype, stream); },
      [&] {
        parallel_for(0, args.plan.tokens, kTokenTile,
                     [&](int64_t begin, int64_t end) { cpu::combine(args, dtype, begin, end); });
      });
}

Tensor dispatch_backward_op(const Tensor& grad_rows, const Tensor& index, const Tensor& rank,
                            const Tensor& offset, MaybeTensor ok) {
  const char* op = "dispatch_backward";
  check_shape(op, "grad_rows", grad_rows, {kAny, kAny}, grad_rows);
  const Plan plan = check_plan(op, index, rank, offset, ok, grad_rows.size(0), grad_rows);
  Tensor grad_x = new_empty(grad_rows, {plan.tokens, grad_rows.size(1)});
  run_combine(op, grad_rows,
              {.plan = plan,
               .rows = grad_rows.const_data_ptr(),
               .score = nullptr,
               .residual = nullptr,
               .hidden = grad_rows.size(1),
               .normalize = Normalize::ones,
               .out = grad_x.mutable_data_ptr(),
               .weight = nullptr});
  return grad_x;
}

std::tuple<Tensor, Tensor> combine_op(const Tensor& rows, const Tensor& score, const Tensor& index,
                                      const Tensor& rank, const Tensor& offset, MaybeTensor ok,
                                      int64_t normalize, MaybeTensor residual) {
  const char* op = "combine";
  check_shape(op, "rows", rows, {kAny, kAny}, rows);
  const Plan plan = check_plan(op, index, rank, offset, ok, rows.size(0), rows);
  check_shape(op, "score", score, {plan.tokens, plan.choices}, rows);
  check_dtype(op, "score", score, sum_type(rows));
  if (residual) {
    check_shape(op, "residual", *residual, {plan.tokens, rows.size(1)}, rows);
    check_dtype(op, "residual", *residual, rows.scalar_type());
  }
  Tensor out = new_empty(rows, {plan.tokens, rows.size(1)});
  Tensor weight = new_empty(score, {plan.tokens, plan.choices});
  run_combine(op, rows,
              {.plan = plan,
               .rows = rows.const_data_ptr(),
               .score = score.const_data_ptr(),
               .residual = data_or_null(residual),
               .hidden = rows.size(1),
               .normalize = check_normalize(op, normalize),
               .out = out.mutable_data_ptr(),
               .weight = weight.mutable_data_ptr()});
  return {out, weight};
}

std::tuple<Tensor, Tensor> combine_backward_op(const Tensor& grad, const Tensor& rows,
                                               const Tensor& score, const Tensor& weight,
                                               const Tensor& index, const Tensor& rank,
                                               const Tensor& offset, MaybeTensor ok,
                                               int64_t normalize) {
  const char* op = "combine_backward";
  check_shape(op, "rows", rows, {kAny, kAny}, rows);
  const Plan plan = check_plan(op, index, rank, offset, ok, rows.size(0), rows);
  check_shape(op, "grad", grad, {plan.tokens, rows.size(1)}, rows);
  check_dtype(op, "grad", grad, rows.scalar_type());
  check_shape(op, "score", score, {plan.tokens, plan.choices}, rows);
  check_dtype(op, "score", score, sum_type(rows));
  check_shape(op, "weight", weight, {plan.tokens, plan.choices}, rows);
  check_dtype(op, "weight", weight, sum_type(rows));

  const Scalar dtype = scalar_of(op, "rows", rows);
  Tensor grad_rows = new_empty(rows, {plan.rows, rows.size(1)});
  Tensor grad_score = new_empty(score, {plan.tokens, plan.choices});
  Tensor source = new_empty(index, {plan.rows});
  const CombineBackwardArgs args{.plan = plan,
                                 .grad = grad.const_data_ptr(),
                                 .rows = rows.const_data_ptr(),
                                 .score = score.const_data_ptr(),
                                 .weight = weight.const_data_ptr(),
                                 .hidden = rows.size(1),
                                 .normalize = check_normalize(op, normalize),
                                 .grad_rows = grad_rows.mutable_data_ptr(),
                                 .grad_score = grad_score.mutable_data_ptr(),
                                 .source = source.mutable_data_ptr<int32_t>()};
  run(
      op, rows, [&](auto stream) { return cuda::combine_backward(args, dtype, stream); },
      [&] {
        std::fill_n(args.source, plan.rows, -1);
        parallel_for(0, plan.tokens, kTokenTile, [&](int64_t begin, int64_t end) {
          cpu::combine_backward(args, dtype, begin, end);
        });
        clear_unowned(args.grad_rows, args.source, plan.rows,
                      rows.size(1) * static_cast<int64_t>(rows.element_size()));
      });
  return {grad_rows, grad_score};
}

// --- the body of an expert ------------------------------------------------

int64_t check_swiglu(const char* op, const Tensor& x, const MaybeTensor& weight) {
  check_shape(op, "x", x, {kAny, kAny}, x);
  STD_TORCH_CHECK(x.size(1) % 2 == 0, op, ": size 1 of x must be even (gate, up), is ", x.size(1));
  STD_TORCH_CHECK(x.size(0) <= kMaxRows, op, ": at most ", kMaxRows, " rows, got ", x.size(0));
  if (weight) {
    check_shape(op, "weight", *weight, {x.size(0)}, x);
    check_dtype(op, "weight", *weight, sum_type(x));
  }
  return x.size(1) / 2;
}

Tensor swiglu_op(const Tensor& x, MaybeTensor weight) {
  const char* op = "swiglu";
  const int64_t width = check_swiglu(op, x, weight);
  const Scalar dtype = scalar_of(op, "x", x);
  Tensor out = new_empty(x, {x.size(0), width});
  const SwigluArgs args{.x = x.const_data_ptr(),
                        .weight = data_or_null(weight),
                        .rows = x.size(0),
                        .width = width,
                        .out = out.mutable_data_ptr()};
  run(
      op, x, [&](auto stream) { return cuda::swiglu(args, dtype, stream); },
      [&] {
        parallel_for(0, args.rows, kTokenTile,
                     [&](int64_t begin, int64_t end) { cpu::swiglu(args, dtype, begin, end); });
      });
  return out;
}

std::tuple<Tensor, Tensor> swiglu_backward_op(const Tensor& grad, const Tensor& x,
                                              MaybeTensor weight) {
  const char* op = "swiglu_backward";
  const int64_t width = check_swiglu(op, x, weight);
  check_shape(op, "grad", grad, {x.size(0), width}, x);
  check_dtype(op, "grad", grad, x.scalar_type());
  const Scalar dtype = scalar_of(op, "x", x);
  Tensor grad_x = new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_weight = new_empty(x, {weight ? x.size(0) : 0}, sum_type(x));
  const SwigluBackwardArgs args{.grad = grad.const_data_ptr(),
                                .x = x.const_data_ptr(),
                                .weight = data_or_null(weight),
                                .rows = x.size(0),
                                .width = width,
                                .grad_x = grad_x.mutable_data_ptr(),
                                .grad_weight = weight ? grad_weight.mutable_data_ptr() : nullptr};
  run(
      op, x, [&](auto stream) { return cuda::swiglu_backward(args, dtype, stream); },
      [&] {
        parallel_for(0, args.rows, kTokenTile, [&](int64_t begin, int64_t end) {
          cpu::swiglu_backward(args, dtype, begin, end);
        });
      });
  return {grad_x, grad_weight};
}

template <class Library> void implement(Library& library) {
  library.impl("route_grid", TORCH_BOX(&route_grid_op));
  library.impl("route_backward", TORCH_BOX(&route_backward_op));
  library.impl("dispatch", TORCH_BOX(&dispatch_op));
  library.impl("dispatch_backward", TORCH_BOX(&dispatch_backward_op));
  library.impl("combine", TORCH_BOX(&combine_op));
  library.impl("combine_backward", TORCH_BOX(&combine_backward_op));
  library.impl("swiglu", TORCH_BOX(&swiglu_op));
  library.impl("swiglu_backward", TORCH_BOX(&swiglu_backward_op));
}

} // namespace
} // namespace lah::ops

STABLE_TORCH_LIBRARY_IMPL(learning_at_home, CPU, library) {
  lah::ops::implement(library);
}
#ifdef LAH_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(learning_at_home, CUDA, library) {
  lah::ops::implement(library);
}
#endif
