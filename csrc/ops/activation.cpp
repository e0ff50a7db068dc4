// The ops between the matrix products of an expert: checks and allocation. Schemas are in
// learning_at_home/ops/schemas.py. Functions end in _op, apart from the kernels of the same stem.
#include <tuple>

#include "ops/launch.h"

namespace lah::ops {
namespace {

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
  library.impl("swiglu", TORCH_BOX(&swiglu_op));
  library.impl("swiglu_backward", TORCH_BOX(&swiglu_backward_op));
}

} // namespace
} // namespace lah::ops

LAH_REGISTER_OPS(lah::ops::implement)
