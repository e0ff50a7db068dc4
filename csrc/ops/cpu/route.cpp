// Exact top-k of one axis: scores or sigmoids, biases, groups; and the gradient through sigmoids.
#include "ops/cpu/best.h"

namespace lah::ops::cpu {
namespace {

// One token's experts. Arrays are padded with void to a multiple of kLanes.
template <class real> class AxisScores {
public:
  Array<real> usable; // logits, void where dead or not finite
  Array<real> key;    // what is compared

  explicit AxisScores(const RouteArgs& a)
      : usable(padded(a.axis.grid.experts), kVoid<real>), key(usable.size(), kVoid<real>), args_(a),
        experts_(a.axis.grid.experts), dead_(experts_, real{0}) {
    for (int64_t e = 0; e < experts_; ++e)
      if (!is_alive(a.axis.alive, e))
        dead_[e] = kVoid<real>;
  }

  LAH_INLINE void load(const real* logits) {
    for (int64_t e = 0; e < experts_; ++e)
      usable[e] = finite_or_void(logits[e]) + dead_[e];
    for (int64_t e = experts_; e < usable.size(); ++e)
      usable[e] = kVoid<real>; // statistics of the token before were made in place
    if (args_.score == Score::sigmoid)
      for (int64_t e = 0; e < experts_; ++e)
        key[e] = usable[e] == kVoid<real> ? kVoid<real> : sigmoid(usable[e]);
    else
      for (int64_t e = 0; e < experts_; ++e)
        key[e] = usable[e];
    const auto* bias = static_cast<const real*>(args_.bias);
    for (int64_t e = 0; bias != nullptr && e < experts_; ++e)
      key[e] = finite_or_void(key[e] + bias[e]);
    if (args_.top_groups < args_.groups)
      keep_best_groups();
  }

private:
  // A group is as good as the sum of its two best keys (DeepSeek-V3); void if it has none.
  LAH_INLINE void keep_best_groups() {
    const int64_t size = experts_ / args_.groups;
    real value[kMaxGroups];
    for (int64_t g = 0; g < args_.groups; ++g) {
      real first = kVoid<real>, second = kVoid<real>;
      for (int64_t e = g * size; e < (g + 1) * size; ++e) {
        const real x = key[e];
        second = x > first ? first : (x > second ? x : second);
        first = x > first ? x : first;
      }
      value[g] = second == kVoid<real> ? first : first + second;
    }
    bool kept[kMaxGroups] = {};
    for (int64_t i = 0; i < args_.top_groups; ++i) {
      int64_t best = -1;
      for (int64_t g = 0; g < args_.groups; ++g)
        if (!kept[g] && value[g] > (best < 0 ? kVoid<real> : value[best]))
          best = g;
      if (best < 0)
        break;
      kept[best] = true;
    }
    for (int64_t g = 0; g < args_.groups; ++g)
      if (!kept[g])
        for (int64_t e = g * size; e < (g + 1) * size; ++e)
          key[e] = kVoid<real>;
  }

  const RouteArgs& args_;
  const int64_t experts_;
  Array<real> dead_; // 0 or -infinity
};

// The sum of a token's sigmoids, in float64; leaves the sigmoids themselves, 0 where void.
template <class real> LAH_INLINE double sum_sigmoids(Array<real>& values) {
  double lanes[kLanes] = {};
  for (int64_t e = 0; e < values.size(); e += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) {
      const real x = values[e + l];
      values[e + l] = x == kVoid<real> ? real{0} : sigmoid(x);
      lanes[l] += static_cast<double>(values[e + l]);
    }
  return fold_sum(lanes);
}

// Adds the token's probabilities: softmax, or each sigmoid's share of their sum.
template <class real>
LAH_INLINE void add_probability(Score score, Array<real>& usable, real lse, int64_t experts,
                                real* probability) {
  if (score == Score::logit) {
    for (int64_t e = 0; e < experts; ++e)
      probability[e] += exp_negative(usable[e] - lse);
    return;
  }
  const double total = sum_sigmoids(usable);
  const real share = total > 0 ? static_cast<real>(1 / total) : real{0};
  for (int64_t e = 0; e < experts; ++e)
    probability[e] += usable[e] * share;
}

template <class real>
LAH_MULTIVERSION void route_axis_range(const RouteArgs& args, int64_t begin, int64_t end) {
  const RouteGridArgs& a = args.axis;
  const int64_t experts = a.grid.experts;
  AxisScores<real> scores(args);
  Tournament<real> order(experts);
  auto* probability = static_cast<real*>(a.tile_probability);
  if (probability != nullptr)
    probability += begin / stats_tile(a.tokens) * experts;
  for (int64_t e = 0; probability != nullptr && e < experts; ++e)
    probability[e] = 0;
  for (int64_t t = begin; t < end; ++t) {
    const real* logits = static_cast<const real*>(a.logits) + t * experts;
    scores.load(logits);
    order.start(scores.key.data(), experts);
    for (int64_t j = 0; j < a.k; ++j) {
      const int64_t id = order.pop().id;
      a.index[t * a.k + j] = static_cast<int32_t>(id);
      real& score = static_cast<real*>(a.score)[t * a.k + j];
      score = id < 0 ? real{0} : logits[id];
      if (id >= 0 && args.score == Score::sigmoid)
        score = sigmoid(score);
    }
    if (a.lse == nullptr)
      continue;
    const real lse = log_sum_exp(scores.usable);
    static_cast<real*>(a.lse)[t] = lse;
    if (probability != nullptr)
      add_probability(args.score, scores.usable, lse, experts, probability);
  }
}

// p_e = sigmoid_e / S: d(sigmoid_e) = (d_p_e - <p, d_p>) / (S tokens); and what the chosen scores
// send to theirs.
template <class real>
LAH_MULTIVERSION void sigmoid_backward_range(const RouteBackwardArgs& a, int64_t begin,
                                             int64_t end) {
  const int64_t experts = a.grid.experts;
  const auto* grad_score = static_cast<const real*>(a.grad_score);
  const auto* grad_lse = static_cast<const real*>(a.grad_lse);
  const auto* d_mean =
      a.grad_stats != nullptr ? static_cast<const real*>(a.grad_stats) + experts : nullptr;
  Array<real> usable(padded(experts), kVoid<real>), value(usable.size(), kVoid<real>);
  for (int64_t t = begin; t < end; ++t) {
    const real* logits = static_cast<const real*>(a.logits) + t * experts;
    real* grad = static_cast<real*>(a.grad_logits) + t * experts;
    for (int64_t e = 0; e < experts; ++e) {
      usable[e] = is_alive(a.alive, e) ? finite_or_void(logits[e]) : kVoid<real>;
      grad[e] = 0;
    }
    for (int64_t e = 0; e < usable.size(); ++e)
      value[e] = usable[e];
    double coupling = 0;
    const double total = sum_sigmoids(value);
    const real share = d_mean != nullptr && total > 0
                           ? static_cast<real>(1 / (total * static_cast<double>(a.tokens)))
                           : real{0};
    for (int64_t e = 0; share > 0 && e < experts; ++e)
      coupling += static_cast<double>(value[e] * d_mean[e]);
    const auto mean = static_cast<real>(total > 0 ? coupling / total : 0.0);
    for (int64_t e = 0; share > 0 && e < experts; ++e)
      grad[e] = (d_mean[e] - mean) * share;
    for (int64_t j = t * a.choices; grad_score != nullptr && j < (t + 1) * a.choices; ++j)
      if (a.index[j] >= 0 && a.index[j] < experts)
        grad[a.index[j]] += grad_score[j];
    for (int64_t e = 0; e < experts; ++e)
      grad[e] *= value[e] * (1 - value[e]);
    for (int64_t e = 0; grad_lse != nullptr && e < experts; ++e)
      grad[e] += grad_lse[t] * exp_negative(usable[e] - static_cast<const real*>(a.lse)[t]);
  }
}

} // namespace

void route_axis_tokens(const RouteArgs& args, Scalar dtype, int64_t begin, int64_t end) {
  dtype == Scalar::f64 ? route_axis_range<double>(args, begin, end)
                       : route_axis_range<float>(args, begin, end);
}

void route_axis_backward(const RouteBackwardArgs& args, Scalar dtype, int64_t begin, int64_t end) {
  dtype == Scalar::f64 ? sigmoid_backward_range<double>(args, begin, end)
                       : sigmoid_backward_range<float>(args, begin, end);
}

} // namespace lah::ops::cpu
