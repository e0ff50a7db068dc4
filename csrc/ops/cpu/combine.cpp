#include <algorithm>

#include "ops/cpu/simd.h"

namespace lah::ops::cpu {
namespace {

constexpr int64_t kBlock = 4 * kLanes; // elements of a row that are multiplied in registers
constexpr int64_t kPart = 1024;        // elements of a row that are summed at a time

// The live choices of one token.
template <class scalar, class real> struct Choices {
  int64_t count = 0;
  int64_t slot[kMaxChoices]; // j
  int64_t row[kMaxChoices];
  const scalar* data[kMaxChoices];
  real weight[kMaxChoices];

  LAH_INLINE Choices(const Plan& plan, const scalar* rows, int64_t hidden, int64_t token) {
    for (int64_t j = 0; j < plan.choices; ++j) {
      const int64_t r = live_row(plan, token * plan.choices + j);
      if (r < 0)
        continue;
      slot[count] = j;
      row[count] = r;
      data[count++] = rows + r * hidden;
    }
  }
};

// The weights of n live scores, in place.
template <class real> void normalize_scores(Normalize mode, real* weight, int64_t n) {
  if (n == 0 || mode == Normalize::none || mode == Normalize::ones)
    return;
  real total = 0;
  if (mode == Normalize::softmax) {
    real largest = weight[0];
    for (int64_t i = 1; i < n; ++i)
      largest = weight[i] > largest ? weight[i] : largest;
    for (int64_t i = 0; i < n; ++i)
      weight[i] = std::exp(weight[i] - largest);
  }
  for (int64_t i = 0; i < n; ++i)
    total += weight[i];
  for (int64_t i = 0; i < n; ++i)
    weight[i] = total == 0 ? real{0} : weight[i] / total;
}

// sum[0 .. n) += weight * row, while the row at `ahead`, or null, is fetched.
template <class scalar, class real>
LAH_INLINE void add_row(real* sum, const scalar* row, real weight, int64_t n, const scalar* ahead) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    if (ahead != nullptr)
      prefetch(ahead + i, kBlock * static_cast<int64_t>(sizeof(scalar)));
    for (int64_t l = 0; l < kBlock; ++l)
      sum[i + l] += weight * widen(row[i + l]);
  }
  for (; i < n; ++i)
    sum[i] += weight * widen(row[i]);
}

// out[h .. h + n) = residual + sum of weight * row. One row after the other, into sums that stay in
// the first cache, while those of the next token come: reading all rows at once, a little of each,
// is more streams than processors prefetch.
template <class scalar, class real>
LAH_INLINE void mix_part(const Choices<scalar, real>& choices, const Choices<scalar, real>& next,
                         const scalar* residual, scalar* out, int64_t h, int64_t n, bool stream) {
  alignas(64) real sum[kPart];
  alignas(64) scalar part[kPart];
  for (int64_t i = 0; i < n; ++i)
    sum[i] = 0;
  for (int64_t c = 0; c < choices.count; ++c)
    add_row(sum, choices.data[c] + h, choices.weight[c], n,
            c < next.count ? next.data[c] + h : nullptr);
  if (residual != nullptr)
    for (int64_t i = 0; i < n; ++i)
      sum[i] += widen(residual[h + i]);
  for (int64_t i = 0; i < n; ++i)
    narrow_into(part[i], sum[i]);
  copy(out + h, part, n * static_cast<int64_t>(sizeof(scalar)), stream);
}

template <class scalar>
LAH_MULTIVERSION void combine_range(const CombineArgs& a, int64_t begin, int64_t end) {
  using real = sum_t<scalar>;
  const auto* rows = static_cast<const scalar*>(a.rows);
  const auto* score = static_cast<const real*>(a.score);
  const auto* residual = static_cast<const scalar*>(a.residual);
  auto* weight = static_cast<real*>(a.weight);
  const auto row_bytes = a.hidden * static_cast<int64_t>(sizeof(scalar));
  const bool stream = can_stream(a.out, row_bytes, a.plan.tokens * row_bytes);
  if (begin == end)
    return; // there is no first token
  Choices<scalar, real> choices(a.plan, rows, a.hidden, begin);
  for (int64_t t = begin; t < end; ++t) {
    const Choices<scalar, real> next(a.plan, rows, a.hidden, std::min(t + 1, end - 1));
    for (int64_t c = 0; c < choices.count; ++c)
      choices.weight[c] = score != nullptr ? score[t * a.plan.choices + choices.slot[c]] : real{1};
    normalize_scores(a.normalize, choices.weight, choices.count);
    if (weight != nullptr) {
      for (int64_t j = 0; j < a.plan.choices; ++j)
        weight[t * a.plan.choices + j] = 0;
      for (int64_t c = 0; c < choices.count; ++c)
        weight[t * a.plan.choices + choices.slot[c]] = choices.weight[c];
    }
    const scalar* added = residual != nullptr ? residual + t * a.hidden : nullptr;
    scalar* out = static_cast<scalar*>(a.out) + t * a.hidden;
    for (int64_t h = 0; h < a.hidden; h += kPart)
      mix_part(choices, next, added, out, h, std::min(kPart, a.hidden - h), stream);
    choices = next;
  }
  stream_fence(stream);
}

// to[0 .. hidden) = w * g; returns <g, row>. n lanes of partial sums, folded in one order.
// Meanwhile the row at `ahead` is fetched.
template <class scalar, class real>
LAH_INLINE real scale_and_dot(scalar* to, const scalar* row, const scalar* g, real w,
                              int64_t hidden, const scalar* ahead, bool stream) {
  real lanes[kLanes] = {};
  int64_t h = 0;
  for (; h + kBlock <= hidden; h += kBlock) {
    alignas(16) scalar block[kBlock];
    prefetch(ahead + h, kBlock * static_cast<int64_t>(sizeof(scalar)));
    for (int64_t i = 0; i < kBlock; ++i)
      narrow_into(block[i], w * widen(g[h + i]));
    for (int64_t i = 0; i < kBlock; i += kLanes)
      for (int64_t l = 0; l < kLanes; ++l)
        lanes[l] += widen(g[h + i + l]) * widen(row[h + i + l]);
    copy(to + h, block, kBlock * static_cast<int64_t>(sizeof(scalar)), stream);
  }
  for (int64_t l = 0; h < hidden; ++h, l = (l + 1) % kLanes) {
    narrow_into(to[h], w * widen(g[h]));
    lanes[l] += widen(g[h]) * widen(row[h]);
  }
  return fold_sum(lanes);
}

// With a[c] = <g, row c>: softmax ds = w (a - <w, a>); sum ds = (a - <w, a>) / sum of scores; none
// ds = a.
template <class real>
LAH_INLINE void score_gradient(Normalize mode, const real* dot, const real* weight, real total,
                               int64_t n, real* ds) {
  real mean = 0;
  for (int64_t c = 0; c < n; ++c)
    mean += weight[c] * dot[c];
  for (int64_t c = 0; c < n; ++c) {
    if (mode == Normalize::softmax)
      ds[c] = weight[c] * (dot[c] - mean);
    else if (mode == Normalize::sum)
      ds[c] = total == 0 ? real{0} : (dot[c] - mean) / total;
    else
      ds[c] = dot[c];
  }
}

template <class scalar>
LAH_MULTIVERSION void combine_backward_range(const CombineBackwardArgs& a, int64_t begin,
                                             int64_t end) {
  using real = sum_t<scalar>;
  const auto* score = static_cast<const real*>(a.score);
  const auto* weight = static_cast<const real*>(a.weight);
  auto* grad_score = static_cast<real*>(a.grad_score);
  auto* grad_rows = static_cast<scalar*>(a.grad_rows);
  const auto row_bytes = a.hidden * static_cast<int64_t>(sizeof(scalar));
  const bool stream = can_stream(grad_rows, row_bytes, a.plan.rows * row_bytes);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t first = t * a.plan.choices;
    Choices<scalar, real> choices(a.plan, static_cast<const scalar*>(a.rows), a.hidden, t);
    const scalar* g = static_cast<const scalar*>(a.grad) + t * a.hidden;
    real dot[kMaxChoices], ds[kMaxChoices], total = 0;
    for (int64_t c = 0; c < choices.count; ++c) {
      const int64_t i = first + choices.slot[c];
      choices.weight[c] = weight[i];
      total += score[i];
      a.source[choices.row[c]] = static_cast<int32_t>(i);
      dot[c] = scale_and_dot(grad_rows + choices.row[c] * a.hidden, choices.data[c], g, weight[i],
                             a.hidden, choices.data[c + 1 < choices.count ? c + 1 : c], stream);
    }
    score_gradient(a.normalize, dot, choices.weight, total, choices.count, ds);
    for (int64_t j = 0; j < a.plan.choices; ++j)
      grad_score[first + j] = 0;
    for (int64_t c = 0; c < choices.count; ++c)
      grad_score[first + choices.slot[c]] = ds[c];
  }
  stream_fence(stream);
}

} // namespace

void combine(const CombineArgs& args, Scalar dtype, int64_t begin, int64_t end) {
  with_scalar(dtype, [&](auto type) { combine_range<decltype(type)>(args, begin, end); });
}

void combine_backward(const CombineBackwardArgs& args, Scalar dtype, int64_t begin, int64_t end) {
  with_scalar(dtype, [&](auto type) { combine_backward_range<decltype(type)>(args, begin, end); });
}

} // namespace lah::ops::cpu
