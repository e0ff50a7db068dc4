// The ops that send tokens to their experts and mix what comes back: checks and allocation. Schemas
// are in learning_at_home/ops/schemas.py. Functions end in _op, apart from the kernels of the same
// stem.
#include <algorithm>
#include <tuple>

#include "ops/launch.h"

namespace lah::ops {
namespace {

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

template <class Library> void implement(Library& library) {
  library.impl("dispatch", TORCH_BOX(&dispatch_op));
  library.impl("dispatch_backward", TORCH_BOX(&dispatch_backward_op));
  library.impl("combine", TORCH_BOX(&combine_op));
  library.impl("combine_backward", TORCH_BOX(&combine_backward_op));
}

} // namespace
} // namespace lah::ops

LAH_REGISTER_OPS(lah::ops::implement)
