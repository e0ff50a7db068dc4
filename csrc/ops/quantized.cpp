// The ops that send tokens to their experts in 8 or 16 bits: checks and allocation. Schemas are in
// learning_at_home/ops/schemas.py. Functions end in _op, apart from the kernels of the same stem.
#include <algorithm>
#include <tuple>

#include "ops/launch.h"

namespace lah::ops {
namespace {

constexpr int64_t kBlockUnit = 16; // elements that every vector of 16 bytes divides

Quantized quantized_of(const char* op, const char* name, ScalarType dtype) {
  switch (dtype) {
  case ScalarType::Char:
    return Quantized::int8;
  case ScalarType::Float8_e4m3fn:
    return Quantized::e4m3;
  case ScalarType::BFloat16:
    return Quantized::bf16;
  default:
    STD_TORCH_CHECK(false, op, ": ", name, " must be int8, float8_e4m3fn or bfloat16, is ",
                    torch::headeronly::toString(dtype));
  }
}

struct Layout {
  int64_t block, blocks; // as in kernels.h
  std::vector<int64_t> scale;
};

// How `rows` rows of `hidden` elements are scaled when blocks are asked for as `block`, 0: one
// scale a row.
Layout check_layout(const char* op, int64_t rows, int64_t hidden, int64_t block,
                    Quantized quantized) {
  STD_TORCH_CHECK(hidden <= kMaxRows, op, ": rows have at most ", kMaxRows, " elements, got ",
                  hidden);
  STD_TORCH_CHECK(block >= 0 && block <= kMaxRows && block % kBlockUnit == 0, op,
                  ": block must be 0 or a multiple of ", kBlockUnit, ", is ", block);
  if (quantized == Quantized::bf16) {
    STD_TORCH_CHECK(block == 0, op, ": block must be 0 with bfloat16, which has no scale, is ",
                    block);
    return {hidden, 0, {0}};
  }
  if (block == 0)
    return {hidden, 1, {rows}};
  const int64_t blocks = (hidden + block - 1) / block;
  return {block, blocks, {rows, blocks}};
}

std::tuple<Tensor, Tensor, Tensor> dispatch_quantized_op(const Tensor& x, const Tensor& index,
                                                         const Tensor& rank, const Tensor& offset,
                                                         ScalarType dtype, int64_t block,
                                                         int64_t align) {
  const char* op = "dispatch_quantized";
  check_shape(op, "x", x, {kAny, kAny}, x);
  STD_TORCH_CHECK(align >= 1 && align <= kMaxRows, op, ": align must be positive, is ", align);
  const int64_t r = rows_of(index.numel(), offset.numel() - 1, align);
  const Plan plan = check_plan(op, index, rank, offset, std::nullopt, r, x);
  STD_TORCH_CHECK(x.size(0) == plan.tokens, op, ": x has ", x.size(0), " tokens, index has ",
                  plan.tokens);
  const Scalar from = scalar_of(op, "x", x);
  const Quantized quantized = quantized_of(op, "dtype", dtype);
  const Layout layout = check_layout(op, r, x.size(1), block, quantized);

  Tensor rows = new_empty(x, {r, x.size(1)}, dtype);
  Tensor scale = new_empty(x, layout.scale, ScalarType::Float);
  Tensor source = new_empty(index, {r});
  const DispatchQuantizedArgs args{.plan = plan,
                                   .x = x.const_data_ptr(),
                                   .hidden = x.size(1),
                                   .block = layout.block,
                                   .blocks = layout.blocks,
                                   .rows = rows.mutable_data_ptr(),
                                   .scale = scale.mutable_data_ptr<float>(),
                                   .source = source.mutable_data_ptr<int32_t>()};
  run(
      op, x, [&](auto stream) { return cuda::dispatch_quantized(args, from, quantized, stream); },
      [&] {
        std::fill_n(args.source, r, -1);
        parallel_for(0, plan.tokens, kTokenTile, [&](int64_t begin, int64_t end) {
          cpu::dispatch_quantized(args, from, quantized, begin, end);
        });
        clear_unowned(args.rows, args.source, r,
                      x.size(1) * static_cast<int64_t>(rows.element_size()));
        clear_unowned(args.scale, args.source, r,
                      layout.blocks * static_cast<int64_t>(sizeof(float)));
      });
  return {rows, scale, source};
}

Tensor dequantize_op(const Tensor& rows, const Tensor& scale, ScalarType dtype, int64_t block) {
  const char* op = "dequantize";
  check_shape(op, "rows", rows, {kAny, kAny}, rows);
  STD_TORCH_CHECK(rows.size(0) <= kMaxRows, op, ": at most ", kMaxRows, " rows, got ",
                  rows.size(0));
  const Quantized quantized = quantized_of(op, "rows", rows.scalar_type());
  const Layout layout = check_layout(op, rows.size(0), rows.size(1), block, quantized);
  if (layout.scale.size() == 1)
    check_shape(op, "scale", scale, {layout.scale[0]}, rows);
  else
    check_shape(op, "scale", scale, {layout.scale[0], layout.scale[1]}, rows);
  check_dtype(op, "scale", scale, ScalarType::Float);

  Tensor out = new_empty(rows, {rows.size(0), rows.size(1)}, dtype);
  const Scalar to = scalar_of(op, "dtype", out);
  const DequantizeArgs args{.rows = rows.const_data_ptr(),
                            .scale = scale.const_data_ptr<float>(),
                            .count = rows.size(0),
                            .hidden = rows.size(1),
                            .block = layout.block,
                            .blocks = layout.blocks,
                            .out = out.mutable_data_ptr()};
  run(
      op, rows, [&](auto stream) { return cuda::dequantize(args, to, quantized, stream); },
      [&] {
        parallel_for(0, args.count, kTokenTile, [&](int64_t begin, int64_t end) {
          cpu::dequantize(args, to, quantized, begin, end);
        });
      });
  return out;
}

template <class Library> void implement(Library& library) {
  library.impl("dispatch_quantized", TORCH_BOX(&dispatch_quantized_op));
  library.impl("dequantize", TORCH_BOX(&dequantize_op));
}

} // namespace
} // namespace lah::ops

LAH_REGISTER_OPS(lah::ops::implement)
