#include "ops/cpu/simd.h"

namespace lah::ops::cpu {
namespace {

constexpr int64_t kBlock = 4 * kLanes; // elements that are computed before they are stored

// n elements of one row. Loops that also narrow do not vectorise, so that comes after.
template <class scalar, class real>
LAH_INLINE void gate_block(const scalar* gate, const scalar* up, real w, scalar* out, int64_t n) {
  real value[kBlock];
  for (int64_t i = 0; i < n; ++i) {
    const real g = widen(gate[i]);
    value[i] = g * sigmoid(g) * widen(up[i]) * w;
  }
  for (int64_t i = 0; i < n; ++i)
    narrow_into(out[i], value[i]);
}

template <class scalar>
LAH_MULTIVERSION void swiglu_range(const SwigluArgs& a, int64_t begin, int64_t end) {
  using real = sum_t<scalar>;
  constexpr int64_t kBytes = kBlock * static_cast<int64_t>(sizeof(scalar));
  const auto* weight = static_cast<const real*>(a.weight);
  const auto row_bytes = a.width * static_cast<int64_t>(sizeof(scalar));
  const bool stream = can_stream(a.out, row_bytes, a.rows * row_bytes);
  for (int64_t r = begin; r < end; ++r) {
    const scalar* gate = static_cast<const scalar*>(a.x) + r * 2 * a.width;
    const scalar* ahead =
        r + 1 < a.rows ? gate + 2 * a.width : gate; // comes while this is computed
    scalar* out = static_cast<scalar*>(a.out) + r * a.width;
    const real w = weight != nullptr ? weight[r] : real{1};
    int64_t h = 0;
    for (; h + kBlock <= a.width; h += kBlock) {
      alignas(16) scalar block[kBlock];
      prefetch(ahead + h, kBytes);
      prefetch(ahead + a.width + h, kBytes);
      gate_block(gate + h, gate + a.width + h, w, block, kBlock);
      copy(out + h, block, kBytes, stream);
    }
    gate_block(gate + h, gate + a.width + h, w, out + h, a.width - h);
  }
  stream_fence(stream);
}

// The gradients of n elements of gate and up; adds up grad * silu(gate) * up in lanes.
template <class scalar, class real>
LAH_INLINE void gradient_block(const scalar* gate, const scalar* up, const scalar* grad, real w,
                               scalar* grad_gate, scalar* grad_up, real* lanes, int64_t n) {
  real of_gate[kBlock], of_up[kBlock], of_weight[kBlock] = {};
  for (int64_t i = 0; i < n; ++i) {
    const real g = widen(gate[i]), u = widen(up[i]), d = widen(grad[i]);
    const real s = sigmoid(g);
    const real silu = g * s;
    of_gate[i] = d * w * u * (s + silu * (real{1} - s));
    of_up[i] = d * w * silu;
    of_weight[i] = d * silu * u;
  }
  for (int64_t i = 0; i < n; ++i)
    narrow_into(grad_gate[i], of_gate[i]);
  for (int64_t i = 0; i < n; ++i)
    narrow_into(grad_up[i], of_up[i]);
  for (int64_t i = 0; i < kBlock; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l)
      lanes[l] += of_weight[i + l];
}

template <class scalar>
LAH_MULTIVERSION void swiglu_backward_range(const SwigluBackwardArgs& a, int64_t begin,
                                            int64_t end) {
  using real = sum_t<scalar>;
  constexpr int64_t kBytes = kBlock * static_cast<int64_t>(sizeof(scalar));
  const auto* weight = static_cast<const real*>(a.weight);
  auto* grad_weight = static_cast<real*>(a.grad_weight);
  const auto row_bytes = a.width * static_cast<int64_t>(sizeof(scalar));
  const bool stream = can_stream(a.grad_x, row_bytes, 2 * a.rows * row_bytes);
  for (int64_t r = begin; r < end; ++r) {
    const scalar* gate = static_cast<const scalar*>(a.x) + r * 2 * a.width;
    const scalar* up = gate + a.width;
    const scalar* grad = static_cast<const scalar*>(a.grad) + r * a.width;
    const int64_t next = r + 1 < a.rows ? 1 : 0; // comes while this is computed
    const scalar *ahead = gate + 2 * next * a.width, *grad_ahead = grad + next * a.width;
    scalar* grad_gate = static_cast<scalar*>(a.grad_x) + r * 2 * a.width;
    scalar* grad_up = grad_gate + a.width;
    const real w = weight != nullptr ? weight[r] : real{1};
    real lanes[kLanes] = {};
    int64_t h = 0;
    for (; h + kBlock <= a.width; h += kBlock) {
      alignas(16) scalar of_gate[kBlock], of_up[kBlock];
      prefetch(ahead + h, kBytes);
      prefetch(ahead + a.width + h, kBytes);
      prefetch(grad_ahead + h, kBytes);
      gradient_block(gate + h, up + h, grad + h, w, of_gate, of_up, lanes, kBlock);
      copy(grad_gate + h, of_gate, kBytes, stream);
      copy(grad_up + h, of_up, kBytes, stream);
    }
    gradient_block(gate + h, up + h, grad + h, w, grad_gate + h, grad_up + h, lanes, a.width - h);
    if (grad_weight != nullptr)
      grad_weight[r] = fold_sum(lanes);
  }
  stream_fence(stream);
}

} // namespace

void swiglu(const SwigluArgs& args, Scalar dtype, int64_t begin, int64_t end) {
  with_scalar(dtype, [&](auto type) { swiglu_range<decltype(type)>(args, begin, end); });
}

void swiglu_backward(const SwigluBackwardArgs& args, Scalar dtype, int64_t begin, int64_t end) {
  with_scalar(dtype, [&](auto type) { swiglu_backward_range<decltype(type)>(args, begin, end); });
}

} // namespace lah::ops::cpu
