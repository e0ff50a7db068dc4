// Exact top-k of a product grid, and its gradient.
#include "ops/cpu/best.h"

namespace lah::ops::cpu {
namespace {

// The columns of a token, and the best of each kLanes of them.
template <class real> class Columns {
public:
  explicit Columns(int64_t columns) : best_(padded(padded(columns) / kLanes), kVoid<real>) {}

  LAH_INLINE void start(const Array<real>& column) {
    for (int64_t b = 0; b < column.size() / kLanes; ++b)
      best_[b] = lanes_max(&column[b * kLanes]);
    best = kVoid<real>;
    for (int64_t b = 0; b < best_.size(); b += kLanes)
      best = std::max(best, lanes_max(&best_[b]));
  }

  // Offers every usable expert of row r whose score reaches the worst of the k best. Rounded
  // addition is monotone: columns that may reach it are in blocks whose best does.
  LAH_INLINE void scan_row(const GridScores<real>& scores, int64_t r, real s,
                           Best<real>& best_experts) const {
    for (int64_t b = 0; b < best_.size(); b += kLanes) {
      const real worst = best_experts.worst();
      uint32_t blocks = lanes_reaching(&best_[b], s, worst);
      for (; blocks != 0; blocks &= blocks - 1)
        if (const int64_t c = (b + std::countr_zero(blocks)) * kLanes; c < scores.columns)
          scan_block(scores, r, s, c, best_experts);
    }
  }

  real best = kVoid<real>;

private:
  LAH_INLINE static void scan_block(const GridScores<real>& scores, int64_t r, real s, int64_t c,
                                    Best<real>& best_experts) {
    const real* column = &scores.column[c];
    const real* dead = &scores.dead[r * scores.columns + c];
    constexpr real kLowest = std::numeric_limits<real>::lowest(); // void does not reach it
    const real worst = best_experts.worst();
    alignas(64) real score[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) // beyond the last column: void
      score[l] = finite_or_void((s + column[l]) + dead[l]);
    uint32_t reach = lanes_reaching(score, real{0}, std::max(worst, kLowest));
    for (; reach != 0; reach &= reach - 1) {
      const int l = std::countr_zero(reach);
      best_experts.offer(score[l], r * scores.columns + c + l);
    }
  }

  Array<real> best_; // padded with void
};

// The `beam` best rows.
template <class real>
LAH_INLINE void choose_from_beam(GridScores<real>& scores, int64_t beam, Tournament<real>& order,
                                 Columns<real>& columns, Best<real>& best) {
  order.start(scores.row.data(), scores.rows);
  columns.start(scores.column);
  best.clear();
  for (int64_t visited = 0; visited < beam; ++visited) {
    const Scored<real> row = order.pop();
    if (row.id < 0 || row.score + columns.best < best.worst())
      return;
    columns.scan_row(scores, row.id, row.score, best);
  }
}

// Fagin's threshold rule: a row matters if its score plus the best column's reaches the worst of
// the k best; one that equals it, if its ids are lower. The best rows come first, as they raise the
// threshold; the others in order of their ids, which costs less than sorting them.
template <class real>
LAH_INLINE void choose_by_threshold(GridScores<real>& scores, Tournament<real>& order,
                                    Columns<real>& columns, Best<real>& best) {
  constexpr int64_t kSorted = 16;
  order.start(scores.row.data(), scores.rows);
  columns.start(scores.column);
  best.clear();
  for (int64_t visited = 0; visited < kSorted || best.worst() == kVoid<real>; ++visited) {
    const Scored<real> row = order.pop(); // and is void from now on
    if (row.id < 0 || row.score + columns.best < best.worst())
      return;
    columns.scan_row(scores, row.id, row.score, best);
  }
  for (int64_t first = 0; first < scores.rows; first += kLanes) {
    const real worst = best.worst();
    uint32_t rows = lanes_reaching(&scores.row[first], columns.best, worst);
    for (; rows != 0; rows &= rows - 1) {
      const int64_t r = first + std::countr_zero(rows);
      const real bound = scores.row[r] + columns.best;
      if (bound > best.worst() ||
          (bound == best.worst() && r * scores.columns < best.id(best.last())))
        columns.scan_row(scores, r, scores.row[r], best);
    }
  }
}

// The score as specified, from the logits themselves: masks have turned -0 into +0.
template <class real> LAH_INLINE real score_of(const Grid& grid, const real* logits, int64_t id) {
  int64_t coordinate[kMaxGridDims] = {};
  for (int64_t d = grid.dims - 1; d >= 0; id /= grid.size[d--])
    coordinate[d] = id % grid.size[d];
  real score = logits[coordinate[0]];
  for (int64_t d = 1; d < grid.dims; ++d)
    score += (logits += grid.size[d - 1])[coordinate[d]];
  return score;
}

template <class real>
LAH_MULTIVERSION void route_range(const RouteGridArgs& a, int64_t begin, int64_t end) {
  GridScores<real> scores(a.grid, a.alive);
  Tournament<real> order(scores.rows);
  Columns<real> columns(scores.columns);
  Best<real> best(a.k);
  auto* probability = static_cast<real*>(a.tile_probability);
  if (probability != nullptr)
    probability += begin / stats_tile(a.tokens) * a.grid.experts;
  for (int64_t e = 0; probability != nullptr && e < a.grid.experts; ++e)
    probability[e] = 0;
  for (int64_t t = begin; t < end; ++t) {
    const real* logits = static_cast<const real*>(a.logits) + t * a.grid.logits;
    scores.load(logits);
    if (a.lse != nullptr) {
      scores.fill_sum();
      const real lse = log_sum_exp(scores.sum);
      static_cast<real*>(a.lse)[t] = lse;
      for (int64_t e = 0; probability != nullptr && e < a.grid.experts; ++e)
        probability[e] += exp_negative(scores.sum[e] - lse);
    }
    a.beam > 0 ? choose_from_beam(scores, a.beam, order, columns, best)
               : choose_by_threshold(scores, order, columns, best);
    for (int64_t j = 0; j < a.k; ++j) {
      const int64_t id = best.id(j);
      a.index[t * a.k + j] = static_cast<int32_t>(id);
      static_cast<real*>(a.score)[t * a.k + j] = id < 0 ? real{0} : score_of(a.grid, logits, id);
    }
  }
}

// d(lse) and d(stats) reach every usable expert: q = p (d_lse + (d_p - <p, d_p>) / tokens), summed
// into each axis.
template <class real>
LAH_INLINE void add_dense_gradient(const RouteBackwardArgs& a, GridScores<real>& scores, int64_t t,
                                   real* grad) {
  const real lse = static_cast<const real*>(a.lse)[t];
  const real d_lse = a.grad_lse != nullptr ? static_cast<const real*>(a.grad_lse)[t] : real{0};
  const real* d_mean =
      a.grad_stats != nullptr ? static_cast<const real*>(a.grad_stats) + a.grid.experts : nullptr;
  const real per_token = real{1} / static_cast<real>(a.tokens);
  scores.fill_sum();
  double coupling = 0;
  for (int64_t e = 0; e < a.grid.experts; ++e) {
    scores.sum[e] = exp_negative(scores.sum[e] - lse);
    if (d_mean != nullptr)
      coupling += static_cast<double>(scores.sum[e] * d_mean[e]);
  }
  const auto mean = static_cast<real>(coupling);
  real* column_grad = grad + a.grid.logits - scores.columns;
  for (int64_t r = 0; r < scores.rows; ++r) {
    real total = 0;
    for (int64_t c = 0; c < scores.columns; ++c) {
      const int64_t e = r * scores.columns + c;
      const real q =
          scores.sum[e] * (d_lse + (d_mean != nullptr ? (d_mean[e] - mean) * per_token : real{0}));
      column_grad[c] += q;
      total += q;
    }
    real* axis = column_grad;
    for (int64_t d = a.grid.dims - 2, prefix = r; d >= 0; prefix /= a.grid.size[d--])
      (axis -= a.grid.size[d])[prefix % a.grid.size[d]] += total;
  }
}

template <class real>
LAH_MULTIVERSION void route_backward_range(const RouteBackwardArgs& a, int64_t begin, int64_t end) {
  GridScores<real> scores(a.grid, a.alive);
  const auto* grad_score = static_cast<const real*>(a.grad_score);
  for (int64_t t = begin; t < end; ++t) {
    real* grad = static_cast<real*>(a.grad_logits) + t * a.grid.logits;
    for (int64_t i = 0; i < a.grid.logits; ++i)
      grad[i] = 0;
    for (int64_t j = 0; grad_score != nullptr && j < a.choices; ++j) {
      int64_t id = a.index[t * a.choices + j];
      if (id < 0 || id >= a.grid.experts)
        continue;
      real* axis = grad + a.grid.logits;
      for (int64_t d = a.grid.dims - 1; d >= 0; id /= a.grid.size[d--])
        (axis -= a.grid.size[d])[id % a.grid.size[d]] += grad_score[t * a.choices + j];
    }
    if (a.grad_lse == nullptr && a.grad_stats == nullptr)
      continue;
    scores.load(static_cast<const real*>(a.logits) + t * a.grid.logits);
    add_dense_gradient(a, scores, t, grad);
  }
}

} // namespace

void route_tokens(const RouteGridArgs& args, Scalar dtype, int64_t begin, int64_t end) {
  dtype == Scalar::f64 ? route_range<double>(args, begin, end)
                       : route_range<float>(args, begin, end);
}

void route_backward(const RouteBackwardArgs& args, Scalar dtype, int64_t begin, int64_t end) {
  dtype == Scalar::f64 ? route_backward_range<double>(args, begin, end)
                       : route_backward_range<float>(args, begin, end);
}

} // namespace lah::ops::cpu
