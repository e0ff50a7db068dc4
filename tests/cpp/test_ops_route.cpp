// route_grid and its gradient against the definition: sorted scores, counted ranks, sums in double.
#include "ops_fixture.hpp"

namespace lah::ops {
namespace {

enum class Flavour { normal, ties, broken, huge }; // broken: NaN and infinities

Grid make_grid(std::initializer_list<int64_t> sizes) {
  Grid grid{static_cast<int64_t>(sizes.size()), {}, 0, 1};
  std::copy(sizes.begin(), sizes.end(), grid.size);
  for (const int64_t size : sizes)
    grid.logits += size, grid.experts *= size;
  return grid;
}

const std::vector<Grid>& grids() {
  static const std::vector<Grid> all{
      make_grid({1}),      make_grid({2}),       make_grid({31}),         make_grid({32}),
      make_grid({33}),     make_grid({300}),     make_grid({1, 70}),      make_grid({70, 1}),
      make_grid({16, 17}), make_grid({5, 7, 3}), make_grid({2, 3, 4, 5}), make_grid({1, 1, 1, 1})};
  return all;
}

template <class real> Guarded<real> make_logits(Random& random, int64_t size, Flavour flavour) {
  Guarded<real> logits = random.normals<real>(size);
  constexpr real kLargest = std::numeric_limits<real>::max();
  for (real& x : logits) {
    if (flavour == Flavour::ties)
      x = random.any_of<real>({real{-0.0}, real{0}, real{1}});
    else if (flavour == Flavour::huge)
      x = std::clamp<real>(x, -1, 1) * kLargest;
    else if (flavour == Flavour::broken && random.chance(0.3))
      x = random.any_of<real>({std::numeric_limits<real>::quiet_NaN(),
                               std::numeric_limits<real>::infinity(),
                               -std::numeric_limits<real>::infinity()});
  }
  return logits;
}

template <class real> struct RouteCase {
  Grid grid;
  int64_t tokens, k, beam, capacity, align;
  Guarded<real> logits;
  Guarded<int32_t> alive;
  bool masked, want_stats;

  RouteCase(Random& random, const Grid& grid_, int64_t tokens_, Flavour flavour)
      : grid(grid_), tokens(tokens_), k(random.any_of<int64_t>({1, 2, 3, 4, 8, 31, 32})),
        beam(random.any_of<int64_t>({0, 0, 1, 3})),
        capacity(random.any_of<int64_t>({0, 0, 1, 5, std::numeric_limits<int32_t>::max()})),
        align(random.any_of<int64_t>({1, 1, 4, 16})),
        logits(make_logits<real>(random, tokens * grid.logits, flavour)),
        alive((grid.experts + 31) / 32), masked(random.chance(0.6)),
        want_stats(random.chance(0.5)) {
    const double share = random.any_of<double>({0, 0.02, 0.5, 0.9});
    for (int32_t& word : alive)
      for (int bit = 0; bit < 32; ++bit) // those beyond the last expert mean nothing
        word = static_cast<int32_t>(static_cast<uint32_t>(word) << 1 | random.chance(share));
  }

  bool is_alive(int64_t e) const {
    return !masked || (static_cast<uint32_t>(alive[e / 32]) >> (e % 32) & 1u) != 0;
  }

  // Added from left to right, as the reference does: the bits of score must be these.
  real score(int64_t token, int64_t expert, int64_t axes) const {
    std::vector<int64_t> coordinate(static_cast<size_t>(axes));
    for (int64_t d = axes - 1; d >= 0; expert /= grid.size[d--])
      coordinate[static_cast<size_t>(d)] = expert % grid.size[d];
    const real* axis = logits.data() + token * grid.logits;
    real sum = axis[coordinate[0]];
    for (int64_t d = 1; d < axes; ++d)
      sum += (axis += grid.size[d - 1])[coordinate[static_cast<size_t>(d)]];
    return sum;
  }
};

// Ids in the order (score descending, id ascending) of those with a finite score.
template <class real> std::vector<int64_t> ranking(const std::vector<real>& score) {
  std::vector<int64_t> ids;
  for (size_t e = 0; e < score.size(); ++e)
    if (std::isfinite(score[e]))
      ids.push_back(static_cast<int64_t>(e));
  std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) {
    return score[static_cast<size_t>(a)] > score[static_cast<size_t>(b)];
  });
  return ids;
}

// The scores of a token's experts, NaN for those that are dead.
template <class real> std::vector<real> usable_scores(const RouteCase<real>& c, int64_t token) {
  std::vector<real> score(static_cast<size_t>(c.grid.experts));
  for (int64_t e = 0; e < c.grid.experts; ++e)
    score[static_cast<size_t>(e)] = c.is_alive(e) ? c.score(token, e, c.grid.dims) : real(kNan);
  return score;
}

// Void are also those whose prefix is none of the `beam` best that have anybody alive.
template <class real>
void apply_beam(const RouteCase<real>& c, int64_t token, std::vector<real>& score) {
  if (c.beam == 0 || c.grid.dims == 1)
    return;
  const int64_t columns = c.grid.size[c.grid.dims - 1], rows = c.grid.experts / columns;
  std::vector<real> prefix(static_cast<size_t>(rows), real(kNan));
  for (int64_t e = 0; e < c.grid.experts; ++e)
    if (c.is_alive(e))
      prefix[static_cast<size_t>(e / columns)] = c.score(token, e / columns, c.grid.dims - 1);
  const std::vector<int64_t> best = ranking(prefix);
  const auto end = best.begin() + std::min(c.beam, static_cast<int64_t>(best.size()));
  for (int64_t e = 0; e < c.grid.experts; ++e)
    if (std::find(best.begin(), end, e / columns) == end)
      score[static_cast<size_t>(e)] = real(kNan);
}

template <class real> double log_sum_exp(const std::vector<real>& score) {
  const std::vector<int64_t> ids = ranking(score);
  if (ids.empty())
    return 0;
  const double largest = static_cast<double>(score[static_cast<size_t>(ids[0])]);
  long double total = 0; // 65536 terms in turn would cost double four digits
  for (const int64_t e : ids)
    total += std::exp(static_cast<double>(score[static_cast<size_t>(e)]) - largest);
  return largest + std::log(static_cast<double>(total));
}

template <class real> struct Routed {
  Guarded<int32_t> index, rank, offset, count;
  Guarded<real> score, lse, stats, tile_probability;

  Bits bits() const { return bits_of(index, rank, offset, count, score, lse, stats); }
};

template <class real> Routed<real> run(const RouteCase<real>& c, Split split, int before) {
  const int64_t tiles = stats_tiles(c.tokens), tile = stats_tile(c.tokens);
  using Ids = Guarded<int32_t>;
  using Values = Guarded<real>;
  Routed<real> out{Ids(c.tokens * c.k, before),
                   Ids(c.tokens * c.k, before),
                   Ids(c.grid.experts + 1, before),
                   Ids(c.grid.experts, before),
                   Values(c.tokens * c.k, before),
                   Values(c.tokens, before),
                   Values(c.want_stats ? 2 * c.grid.experts : 0, before),
                   Values(c.want_stats ? tiles * c.grid.experts : 0, before)};
  const RouteGridArgs args{.grid = c.grid,
                           .logits = c.logits.data(),
                           .alive = c.masked ? c.alive.data() : nullptr,
                           .tokens = c.tokens,
                           .k = c.k,
                           .beam = c.beam,
                           .capacity = c.capacity,
                           .align = c.align,
                           .index = out.index.data(),
                           .rank = out.rank.data(),
                           .offset = out.offset.data(),
                           .count = out.count.data(),
                           .score = out.score.data(),
                           .lse = out.lse.data(),
                           .stats = c.want_stats ? out.stats.data() : nullptr,
                           .tile_count = nullptr,
                           .tile_probability =
                               c.want_stats ? out.tile_probability.data() : nullptr};
  if (c.want_stats) // statistics need the tiles one by one
    over(split, tiles, [&](auto begin, auto end) {
      for (int64_t i = begin; i < end; ++i)
        cpu::route_tokens(args, kScalar<real>, i * tile, std::min((i + 1) * tile, c.tokens));
    });
  else
    over(split, c.tokens,
         [&](auto begin, auto end) { cpu::route_tokens(args, kScalar<real>, begin, end); });
  cpu::route_plan(args, kScalar<real>);
  return out;
}

template <class real> void check_choices(const RouteCase<real>& c, const Routed<real>& out) {
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::vector<real> score = usable_scores(c, t);
    const double lse = log_sum_exp(score);
    ASSERT_NEAR(static_cast<double>(out.lse[t]), lse, bound<real>(lse, std::abs(lse) + 1));
    apply_beam(c, t, score);
    const std::vector<int64_t> best = ranking(score);
    for (int64_t j = 0; j < c.k; ++j) {
      const int64_t i = t * c.k + j;
      const bool is_void = j >= static_cast<int64_t>(best.size());
      const int64_t want = is_void ? -1 : best[static_cast<size_t>(j)];
      ASSERT_EQ(out.index[i], want) << "token " << t << ", choice " << j;
      const real s = is_void ? real{0} : score[static_cast<size_t>(want)];
      ASSERT_EQ(std::memcmp(&out.score[i], &s, sizeof(real)), 0) << out.score[i] << ", not " << s;
    }
  }
}

template <class real> void check_plan(const RouteCase<real>& c, const Routed<real>& out) {
  std::vector<int32_t> count(static_cast<size_t>(c.grid.experts), 0);
  for (int64_t i = 0; i < out.index.size(); ++i) {
    const int32_t e = out.index[i];
    const int32_t rank = e < 0 ? -1 : count[static_cast<size_t>(e)]++;
    ASSERT_EQ(out.rank[i], c.capacity > 0 && rank >= c.capacity ? -1 : rank) << "assignment " << i;
  }
  int64_t next = 0;
  for (int64_t e = 0; e < c.grid.experts; ++e) {
    const int64_t all = count[static_cast<size_t>(e)];
    ASSERT_EQ(out.count[e], all);
    ASSERT_EQ(out.offset[e], next);
    next += ((c.capacity > 0 ? std::min(all, c.capacity) : all) + c.align - 1) / c.align * c.align;
  }
  ASSERT_EQ(out.offset[c.grid.experts], next);
  ASSERT_LE(next, rows_of(c.tokens * c.k, c.grid.experts, c.align));
}

template <class real> void check_stats(const RouteCase<real>& c, const Routed<real>& out) {
  std::vector<double> mean(static_cast<size_t>(c.grid.experts), 0.0);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const std::vector<real> score = usable_scores(c, t);
    const double lse = log_sum_exp(score);
    for (const int64_t e : ranking(score))
      mean[static_cast<size_t>(e)] +=
          std::exp(static_cast<double>(score[static_cast<size_t>(e)]) - lse) /
          static_cast<double>(c.tokens);
  }
  for (int64_t e = 0; e < c.grid.experts; ++e) {
    ASSERT_EQ(out.stats[e], static_cast<real>(out.count[e]));
    ASSERT_NEAR(static_cast<double>(out.stats[c.grid.experts + e]), mean[static_cast<size_t>(e)],
                1e-5);
  }
}

template <class real> void check(const RouteCase<real>& c, const Routed<real>& out) {
  check_choices(c, out);
  check_plan(c, out);
  if (c.want_stats)
    check_stats(c, out);
}

template <class Check> void for_each_shape(uint32_t seed, Flavour flavour, const Check& check) {
  Random random(seed);
  for (const Grid& grid : grids())
    for (const int64_t tokens : kTokenCounts) {
      SCOPED_TRACE(testing::Message()
                   << tokens << " tokens, " << grid.experts << " experts on " << grid.dims
                   << " axes, flavour " << static_cast<int>(flavour));
      check(random, grid, tokens);
      if (testing::Test::HasFailure())
        return;
    }
}

template <class real> struct OpsRoute : testing::Test {};
using LogitTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(OpsRoute, LogitTypes);

TYPED_TEST(OpsRoute, EqualsTheDefinitionForAnySplit) {
  for (const Flavour flavour : {Flavour::normal, Flavour::ties, Flavour::broken, Flavour::huge})
    for_each_shape(1, flavour, [&](Random& random, const Grid& grid, int64_t tokens) {
      const RouteCase<TypeParam> c(random, grid, tokens, flavour);
      check(c, run(c, Split::whole, kBefore));
      expect_same_bits_for_any_split(
          [&](Split split, int before) { return run(c, split, before).bits(); });
    });
}

TYPED_TEST(OpsRoute, AllTokensToOneExpertWithCapacity) {
  Random random(2);
  for (const int64_t capacity : {0, 100}) {
    RouteCase<TypeParam> c(random, make_grid({5, 7}), 5000, Flavour::normal);
    c.k = 1, c.beam = 0, c.align = 8, c.capacity = capacity, c.masked = false;
    c.want_stats = true;                   // tiles of more than kTokenTile tokens
    for (int64_t t = 0; t < c.tokens; ++t) // expert (3, 4)
      c.logits[t * 12 + 3] = c.logits[t * 12 + 5 + 4] = 100;
    const auto out = run(c, Split::threads, kBefore);
    check(c, out);
    EXPECT_EQ(out.count[3 * 7 + 4], 5000);
  }
}

TYPED_TEST(OpsRoute, TheWidestGridAndTheDeepest) {
  Random random(3);
  for (const Grid& grid :
       {make_grid({65536}), make_grid({2, 32768}), make_grid({4, 4, 4, 4, 4, 4, 4, 4})})
    for (const Flavour flavour : {Flavour::normal, Flavour::ties}) {
      RouteCase<TypeParam> c(random, grid, 3, flavour);
      c.k = 32, c.beam = 0;
      check(c, run(c, Split::threads, kBefore));
    }
}

// ---- the gradient of the logits -----------------------------------------------------------------

template <class real> struct RouteGradient {
  const RouteCase<real>& c;
  Guarded<int32_t> index;
  Guarded<real> lse, of_score, of_lse, of_stats;
  bool with_score, with_lse, with_stats;

  RouteGradient(Random& random, const RouteCase<real>& c_, Routed<real>&& routed)
      : c(c_), index(std::move(routed.index)), lse(std::move(routed.lse)),
        of_score(random.normals<real>(c.tokens * c.k)), of_lse(random.normals<real>(c.tokens)),
        of_stats(random.normals<real>(2 * c.grid.experts)), with_score(random.chance(0.7)),
        with_lse(random.chance(0.7)), with_stats(random.chance(0.7)) {}

  Guarded<real> run(Split split, int before) const {
    Guarded<real> grad(c.tokens * c.grid.logits, before);
    const RouteBackwardArgs args{.grid = c.grid,
                                 .grad_score = with_score ? of_score.data() : nullptr,
                                 .grad_lse = with_lse ? of_lse.data() : nullptr,
                                 .grad_stats = with_stats ? of_stats.data() : nullptr,
                                 .logits = c.logits.data(),
                                 .index = index.data(),
                                 .alive = c.masked ? c.alive.data() : nullptr,
                                 .lse = lse.data(),
                                 .tokens = c.tokens,
                                 .choices = c.k,
                                 .grad_logits = grad.data()};
    over(split, c.tokens,
         [&](auto begin, auto end) { cpu::route_backward(args, kScalar<real>, begin, end); });
    return grad;
  }

  // dL / dscore of every expert of a token, in double.
  std::vector<double> of_experts(int64_t token) const {
    std::vector<double> grad(static_cast<size_t>(c.grid.experts), 0.0);
    for (int64_t i = token * c.k; with_score && i < (token + 1) * c.k; ++i)
      if (index[i] >= 0 && index[i] < c.grid.experts)
        grad[static_cast<size_t>(index[i])] += static_cast<double>(of_score[i]);
    const std::vector<real> score = usable_scores(c, token);
    const double total = log_sum_exp(score);
    const auto probability = [&](int64_t e) {
      return std::exp(static_cast<double>(score[static_cast<size_t>(e)]) - total);
    };
    const auto mean_grad = [&](int64_t e) {
      return with_stats ? static_cast<double>(of_stats[c.grid.experts + e]) : 0.0;
    };
    double coupling = 0;
    for (const int64_t e : ranking(score))
      coupling += probability(e) * mean_grad(e);
    const double d_lse = with_lse ? static_cast<double>(of_lse[token]) : 0;
    for (const int64_t e : ranking(score))
      grad[static_cast<size_t>(e)] +=
          probability(e) * (d_lse + (mean_grad(e) - coupling) / static_cast<double>(c.tokens));
    return grad;
  }

  void check(const Guarded<real>& got) const {
    for (int64_t t = 0; t < c.tokens; ++t) {
      std::vector<double> want(static_cast<size_t>(c.grid.logits), 0.0);
      double size = 0;
      const std::vector<double> grad = of_experts(t);
      for (int64_t e = 0; e < c.grid.experts; ++e) {
        int64_t id = e, axis = c.grid.logits;
        for (int64_t d = c.grid.dims - 1; d >= 0; id /= c.grid.size[d--]) {
          axis -= c.grid.size[d];
          want[static_cast<size_t>(axis + id % c.grid.size[d])] += grad[static_cast<size_t>(e)];
        }
        size += std::abs(grad[static_cast<size_t>(e)]);
      }
      for (int64_t i = 0; i < c.grid.logits; ++i)
        ASSERT_NEAR(static_cast<double>(got[t * c.grid.logits + i]), want[static_cast<size_t>(i)],
                    bound<real>(0, 2 * size))
            << "logit " << i << " of token " << t;
    }
  }
};

TYPED_TEST(OpsRoute, GradientEqualsThatInDouble) {
  for (const Flavour flavour : {Flavour::normal, Flavour::ties, Flavour::broken})
    for_each_shape(4, flavour, [&](Random& random, const Grid& grid, int64_t tokens) {
      const RouteCase<TypeParam> c(random, grid, tokens, flavour);
      const RouteGradient<TypeParam> gradient(random, c, run(c, Split::whole, kBefore));
      gradient.check(gradient.run(Split::whole, kBefore));
      expect_same_bits_for_any_split(
          [&](Split split, int before) { return bits_of(gradient.run(split, before)); });
    });
}

TYPED_TEST(OpsRoute, GradientsOfBrokenIdsTouchNothingOutside) {
  Random random(5);
  for (int repeat = 0; repeat < 10; ++repeat)
    for (const Grid& grid : grids()) {
      const RouteCase<TypeParam> c(random, grid, 65, Flavour::normal);
      RouteGradient<TypeParam> gradient(random, c, run(c, Split::whole, kBefore));
      for (int32_t& id : gradient.index)
        id = random.chance(0.3) ? id : random.garbage(grid.experts);
      gradient.check(gradient.run(Split::threads, kBefore));
    }
}

} // namespace
} // namespace lah::ops
