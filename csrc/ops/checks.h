// What every op checks before it works: devices, shapes, dtypes, plans and grids. Errors name the
// op, the argument, what was expected and what came.
#pragma once

#include <limits>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "ops/kernels.h"

namespace lah::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr int64_t kAny = -1;
constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();

inline void check_shape(const char* op, const char* name, const Tensor& x,
                        std::initializer_list<int64_t> shape, const Tensor& like) {
  const bool same_device =
      x.is_cuda() == like.is_cuda() && x.get_device_index() == like.get_device_index();
  STD_TORCH_CHECK(same_device, op, ": ", name, " is on another device");
  STD_TORCH_CHECK(x.is_contiguous(), op, ": ", name, " must be contiguous");
  STD_TORCH_CHECK(x.dim() == static_cast<int64_t>(shape.size()), op, ": ", name, " must have ",
                  shape.size(), " dimensions, has ", x.dim());
  int64_t d = 0;
  for (const int64_t want : shape) {
    STD_TORCH_CHECK(want == kAny || want == x.size(d), op, ": size ", d, " of ", name, " must be ",
                    want, ", is ", x.size(d));
    ++d;
  }
}

inline void check_dtype(const char* op, const char* name, const Tensor& x, ScalarType want) {
  STD_TORCH_CHECK(x.scalar_type() == want, op, ": ", name, " must be ",
                  torch::headeronly::toString(want), ", is ",
                  torch::headeronly::toString(x.scalar_type()));
}

inline Scalar scalar_of(const char* op, const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
  case ScalarType::Float:
    return Scalar::f32;
  case ScalarType::BFloat16:
    return Scalar::bf16;
  case ScalarType::Half:
    return Scalar::f16;
  case ScalarType::Double:
    STD_TORCH_CHECK(!x.is_cuda(), op, ": ", name, " is float64, which is for the CPU only");
    return Scalar::f64;
  default:
    STD_TORCH_CHECK(false, op, ": ", name, " must be float32, bfloat16, float16 or float64, is ",
                    torch::headeronly::toString(x.scalar_type()));
  }
}

// The type of scores and weights: sums are made in it.
inline ScalarType sum_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline const void* data_or_null(const MaybeTensor& x) {
  return x ? x->const_data_ptr() : nullptr;
}

inline Plan check_plan(const char* op, const Tensor& index, const Tensor& rank,
                       const Tensor& offset, const MaybeTensor& ok, int64_t rows,
                       const Tensor& like) {
  check_shape(op, "index", index, {kAny, kAny}, like);
  check_shape(op, "rank", rank, {index.size(0), index.size(1)}, like);
  check_shape(op, "offset", offset, {kAny}, like);
  STD_TORCH_CHECK(index.size(1) <= kMaxChoices, op, ": at most ", kMaxChoices, " choices, got ",
                  index.size(1));
  STD_TORCH_CHECK(offset.size(0) >= 2, op,
                  ": offset must have one element more than there are experts");
  STD_TORCH_CHECK(rows <= kMaxRows, op, ": at most ", kMaxRows, " rows, got ", rows);
  if (ok)
    check_shape(op, "ok", *ok, {rows}, like);
  return {index.const_data_ptr<int32_t>(),
          rank.const_data_ptr<int32_t>(),
          offset.const_data_ptr<int32_t>(),
          ok ? ok->const_data_ptr<bool>() : nullptr,
          index.size(0),
          index.size(1),
          offset.size(0) - 1,
          rows};
}

inline Grid check_grid(const char* op, const std::vector<int64_t>& sizes, const Tensor& logits) {
  Grid grid{static_cast<int64_t>(sizes.size()), {}, 0, 1};
  STD_TORCH_CHECK(grid.dims >= 1 && grid.dims <= kMaxGridDims, op, ": grid must have 1 to ",
                  kMaxGridDims, " axes, has ", grid.dims);
  for (int64_t d = 0; d < grid.dims; ++d) {
    const int64_t size = sizes[static_cast<size_t>(d)];
    STD_TORCH_CHECK(size >= 1 && size <= kMaxExperts / grid.experts, op,
                    ": grid must be positive sizes with a product of at most ", kMaxExperts);
    grid.size[d] = size;
    grid.logits += size;
    grid.experts *= size;
  }
  check_shape(op, "logits", logits, {kAny, grid.logits}, logits);
  check_dtype(op, "logits", logits, logits.is_cuda() ? ScalarType::Float : sum_type(logits));
  return grid;
}

inline const int32_t* check_alive(const char* op, const MaybeTensor& alive, const Grid& grid,
                                  const Tensor& like) {
  if (!alive)
    return nullptr;
  check_shape(op, "alive", *alive, {(grid.experts + 31) / 32}, like);
  return alive->const_data_ptr<int32_t>();
}

inline Normalize check_normalize(const char* op, int64_t normalize) {
  STD_TORCH_CHECK(normalize >= 0 && normalize <= 2, op, ": normalize must be 0, 1 or 2, is ",
                  normalize);
  return static_cast<Normalize>(normalize);
}

} // namespace lah::ops
