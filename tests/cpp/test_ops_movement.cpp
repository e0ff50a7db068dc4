// dispatch, combine and their gradients against sums in double precision: every row and nothing
// else is written, missing rows are not read, and broken plans touch nothing outside.
#include "ops_fixture.hpp"

namespace lah::ops {
namespace {

// Every pair of token count and width, with all else at random.
template <class Check> void for_each_shape(uint32_t seed, const Check& check) {
  Random random(seed);
  for (const int64_t tokens : kTokenCounts)
    for (const int64_t width : kWidths) {
      const auto choices = random.any_of<int64_t>({1, 2, 3, 4, 8, 32});
      const int64_t experts = kExpertCounts[random.below(std::size(kExpertCounts))];
      const auto align = random.any_of<int64_t>({1, 1, 8});
      const auto capacity = random.any_of<int64_t>({0, 0, 3});
      const PlanCase plan =
          make_plan(random, tokens, choices, experts, align, capacity, random.chance(0.5));
      SCOPED_TRACE(testing::Message() << tokens << " tokens, width " << width << ", " << choices
                                      << " choices, " << experts << " experts, align " << align
                                      << ", capacity " << capacity << ", masked " << plan.masked);
      check(random, plan, width);
      if (testing::Test::HasFailure())
        return;
    }
}

// ---- dispatch -----------------------------------------------------------------------------------

struct Dispatched {
  Guarded<uint8_t> rows;
  Guarded<int32_t> source;
};

Dispatched run_dispatch(const PlanCase& plan, const Guarded<uint8_t>& x, int64_t row_bytes,
                        Split split, int before) {
  Dispatched out{Guarded<uint8_t>(plan.rows * row_bytes, before), Guarded<int32_t>(plan.rows)};
  std::fill(out.source.begin(), out.source.end(), -1);
  const DispatchArgs args{plan.plan(), x.data(), row_bytes, out.rows.data(), out.source.data()};
  over(split, plan.tokens, [&](auto begin, auto end) { cpu::dispatch(args, begin, end); });
  over(split, plan.rows, [&](auto begin, auto end) {
    cpu::clear_unowned(args.rows, args.source, row_bytes, begin, end);
  });
  return out;
}

Guarded<uint8_t> random_bytes(Random& random, int64_t size) {
  Guarded<uint8_t> x(size);
  for (uint8_t& byte : x)
    byte = static_cast<uint8_t>(random.engine() | 1u); // never the zero of an unowned row
  return x;
}

void check_dispatched(const PlanCase& plan, const Guarded<uint8_t>& x, int64_t row_bytes,
                      const Dispatched& got) {
  const std::vector<int64_t> owner = plan.owners();
  for (int64_t row = 0; row < plan.rows; ++row) {
    const int64_t i = owner[static_cast<size_t>(row)];
    ASSERT_EQ(got.source[row], i) << "row " << row;
    const uint8_t* bytes = got.rows.begin() + row * row_bytes;
    const bool right =
        i < 0 ? std::all_of(bytes, bytes + row_bytes, [](uint8_t b) { return b == 0; })
              : std::equal(bytes, bytes + row_bytes, x.begin() + i / plan.choices * row_bytes);
    ASSERT_TRUE(right) << "row " << row;
  }
}

TEST(OpsDispatch, EveryRowHoldsItsTokenOrZeros) {
  for_each_shape(1, [](Random& random, const PlanCase& plan, int64_t width) {
    const auto row_bytes = width * random.any_of<int64_t>({1, 2, 4, 8});
    const Guarded<uint8_t> x = random_bytes(random, plan.tokens * row_bytes);
    check_dispatched(plan, x, row_bytes, run_dispatch(plan, x, row_bytes, Split::whole, kBefore));
    expect_same_bits_for_any_split([&](Split split, int before) {
      const Dispatched out = run_dispatch(plan, x, row_bytes, split, before);
      return bits_of(out.rows, out.source);
    });
  });
}

TEST(OpsDispatch, OutputsBeyondTheCachesAreStreamed) {
  Random random(2);
  const PlanCase plan = make_plan(random, 130, 8, 33, 16, 0, false);
  constexpr int64_t kRowBytes = 4096; // a multiple of 16: what is streamed
  const Guarded<uint8_t> x = random_bytes(random, plan.tokens * kRowBytes);
  check_dispatched(plan, x, kRowBytes, run_dispatch(plan, x, kRowBytes, Split::threads, kBefore));
}

TEST(OpsDispatch, RowsOfNoBytes) {
  Random random(3);
  const PlanCase plan = make_plan(random, 65, 2, 3, 1, 0, false);
  const Guarded<uint8_t> x;
  check_dispatched(plan, x, 0, run_dispatch(plan, x, 0, Split::uneven, kBefore));
}

// TransformerEngine wrote out of bounds where one expert took more rows than fit (#3346, #3347).
TEST(OpsDispatch, AllTokensToOneExpertWithCapacity) {
  Random random(4);
  for (const int64_t only : {0, 3, 299})
    for (const int64_t capacity : {0, 1, 100, 5000}) {
      const PlanCase plan = make_plan(random, 4097, 1, 300, 8, capacity, false, only);
      const Guarded<uint8_t> x = random_bytes(random, plan.tokens * 24);
      const Dispatched got = run_dispatch(plan, x, 24, Split::threads, kBefore);
      check_dispatched(plan, x, 24, got);
      const auto owned =
          std::count_if(got.source.begin(), got.source.end(), [](int32_t i) { return i >= 0; });
      EXPECT_EQ(owned, capacity == 0 ? 4097 : std::min<int64_t>(capacity, 4097));
    }
}

TEST(OpsDispatch, MoreRowsThanFitAreDropped) {
  Random random(5);
  PlanCase plan = make_plan(random, 130, 4, 31, 1, 0, false);
  plan.rows /= 3; // the guards stand right behind
  const Guarded<uint8_t> x = random_bytes(random, plan.tokens * 48);
  check_dispatched(plan, x, 48, run_dispatch(plan, x, 48, Split::threads, kBefore));
}

TEST(OpsDispatch, BrokenPlansTouchNothingOutside) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    const PlanCase plan = make_broken_plan(random, 65, random.any_of<int64_t>({1, 3, 32}),
                                           random.any_of<int64_t>({1, 33}), random.chance(0.5));
    const Guarded<uint8_t> x = random_bytes(random, plan.tokens * 20);
    check_dispatched(plan, x, 20, run_dispatch(plan, x, 20, Split::uneven, kBefore));
  }
}

// ---- combine ------------------------------------------------------------------------------------

constexpr Normalize kModes[] = {Normalize::softmax, Normalize::sum, Normalize::none,
                                Normalize::ones};

template <class scalar> struct Mixture {
  using real = sum_t<scalar>;
  const PlanCase& plan;
  int64_t hidden;
  Guarded<scalar> rows; // NaN where nobody's or missing
  Guarded<real> score;  // positive: "sum" divides by their sum
  Guarded<scalar> residual, grad;
  bool added;

  Mixture(Random& random, const PlanCase& plan_, int64_t hidden_)
      : plan(plan_), hidden(hidden_), rows(random.normals<scalar>(plan.rows * hidden)),
        score(random.normals<real>(plan.index.size())),
        residual(random.normals<scalar>(plan.tokens * hidden)),
        grad(random.normals<scalar>(plan.tokens * hidden)), added(random.chance(0.5)) {
    const std::vector<int64_t> owner = plan.owners();
    for (int64_t i = 0; i < rows.size(); ++i)
      if (owner[static_cast<size_t>(i / hidden)] < 0)
        rows[i] = narrow<scalar>(std::numeric_limits<real>::quiet_NaN());
    for (real& s : score)
      s = std::abs(s) + real{0.5};
  }

  // The weights of a token by definition, 0 where not live.
  std::vector<double> weights(Normalize mode, int64_t token) const {
    std::vector<double> w(static_cast<size_t>(plan.choices), 0.0);
    double total = 0;
    for (size_t j = 0; j < w.size(); ++j) {
      const int64_t i = token * plan.choices + static_cast<int64_t>(j);
      if (plan.row_of(i) < 0)
        continue;
      const double s = static_cast<double>(score[i]);
      w[j] = mode == Normalize::ones ? 1.0 : mode == Normalize::softmax ? std::exp(s) : s;
      total += w[j];
    }
    for (double& x : w)
      if (x != 0 && (mode == Normalize::softmax || mode == Normalize::sum))
        x /= total;
    return w;
  }
};

template <class scalar> struct Combined {
  Guarded<scalar> out;
  Guarded<sum_t<scalar>> weight;
};

template <class scalar>
Combined<scalar> run_combine(const Mixture<scalar>& m, Normalize mode, Split split, int before) {
  const bool ones = mode == Normalize::ones;
  Combined<scalar> result{
      Guarded<scalar>(m.plan.tokens * m.hidden, before),
      Guarded<sum_t<scalar>>(ones ? 0 : m.plan.index.size(), before),
  };
  const CombineArgs args{.plan = m.plan.plan(),
                         .rows = m.rows.data(),
                         .score = ones ? nullptr : m.score.data(),
                         .residual = m.added ? m.residual.data() : nullptr,
                         .hidden = m.hidden,
                         .normalize = mode,
                         .out = result.out.data(),
                         .weight = ones ? nullptr : result.weight.data()};
  over(split, m.plan.tokens,
       [&](auto begin, auto end) { cpu::combine(args, kScalar<scalar>, begin, end); });
  return result;
}

template <class scalar>
void check_combined(const Mixture<scalar>& m, Normalize mode, const Combined<scalar>& got) {
  using real = sum_t<scalar>;
  for (int64_t t = 0; t < m.plan.tokens; ++t) {
    const std::vector<double> weight = m.weights(mode, t);
    for (int64_t j = 0; j < m.plan.choices && mode != Normalize::ones; ++j) {
      const double want = weight[static_cast<size_t>(j)];
      ASSERT_NEAR(static_cast<double>(got.weight[t * m.plan.choices + j]), want,
                  bound<real>(want, want))
          << "weight " << j << " of token " << t;
    }
    for (int64_t h = 0; h < m.hidden; ++h) {
      double want = m.added ? wide(m.residual[t * m.hidden + h]) : 0, size = std::abs(want);
      for (int64_t j = 0; j < m.plan.choices; ++j) {
        const int64_t row = m.plan.row_of(t * m.plan.choices + j);
        const double term =
            row < 0 ? 0 : weight[static_cast<size_t>(j)] * wide(m.rows[row * m.hidden + h]);
        want += term, size += std::abs(term);
      }
      ASSERT_NEAR(wide(got.out[t * m.hidden + h]), want, bound<scalar>(want, size))
          << "element " << h << " of token " << t;
    }
  }
}

template <class scalar> struct Gradients {
  Guarded<scalar> rows;
  Guarded<sum_t<scalar>> score;
  Guarded<int32_t> source;
};

template <class scalar>
Gradients<scalar> run_backward(const Mixture<scalar>& m, Normalize mode,
                               const Guarded<sum_t<scalar>>& weight, Split split, int before) {
  Gradients<scalar> result{Guarded<scalar>(m.plan.rows * m.hidden, before),
                           Guarded<sum_t<scalar>>(m.plan.index.size(), before),
                           Guarded<int32_t>(m.plan.rows)};
  std::fill(result.source.begin(), result.source.end(), -1);
  const CombineBackwardArgs args{.plan = m.plan.plan(),
                                 .grad = m.grad.data(),
                                 .rows = m.rows.data(),
                                 .score = m.score.data(),
                                 .weight = weight.data(),
                                 .hidden = m.hidden,
                                 .normalize = mode,
                                 .grad_rows = result.rows.data(),
                                 .grad_score = result.score.data(),
                                 .source = result.source.data()};
  over(split, m.plan.tokens,
       [&](auto begin, auto end) { cpu::combine_backward(args, kScalar<scalar>, begin, end); });
  over(split, m.plan.rows, [&](auto begin, auto end) {
    cpu::clear_unowned(args.grad_rows, args.source, m.hidden * static_cast<int64_t>(sizeof(scalar)),
                       begin, end);
  });
  return result;
}

template <class scalar>
void check_row_gradients(const Mixture<scalar>& m, Normalize mode, const Guarded<scalar>& got) {
  const std::vector<int64_t> owner = m.plan.owners();
  for (int64_t row = 0; row < m.plan.rows; ++row) {
    const int64_t i = owner[static_cast<size_t>(row)], t = i < 0 ? 0 : i / m.plan.choices;
    const double w = i < 0 ? 0 : m.weights(mode, t)[static_cast<size_t>(i - t * m.plan.choices)];
    for (int64_t h = 0; h < m.hidden; ++h) {
      const double want = i < 0 ? 0 : w * wide(m.grad[t * m.hidden + h]);
      ASSERT_NEAR(wide(got[row * m.hidden + h]), want, bound<scalar>(want, std::abs(want)))
          << "element " << h << " of row " << row;
    }
  }
}

// L = <g, sum_j w_j y_j>, and dL/ds by the chain rule through every weight.
template <class scalar>
void check_score_gradients(const Mixture<scalar>& m, Normalize mode,
                           const Guarded<sum_t<scalar>>& got) {
  for (int64_t t = 0; t < m.plan.tokens; ++t) {
    const std::vector<double> weight = m.weights(mode, t);
    std::vector<double> dot(weight.size(), 0.0);
    double mean = 0, total = 0, size = 0;
    for (size_t j = 0; j < dot.size(); ++j) {
      const int64_t i = t * m.plan.choices + static_cast<int64_t>(j), row = m.plan.row_of(i);
      for (int64_t h = 0; row >= 0 && h < m.hidden; ++h) {
        const double term = wide(m.grad[t * m.hidden + h]) * wide(m.rows[row * m.hidden + h]);
        dot[j] += term, size += std::abs(term);
      }
      mean += weight[j] * dot[j];
      total += row < 0 ? 0 : static_cast<double>(m.score[i]);
    }
    for (size_t j = 0; j < dot.size(); ++j) {
      const int64_t i = t * m.plan.choices + static_cast<int64_t>(j);
      const double want = m.plan.row_of(i) < 0         ? 0
                          : mode == Normalize::softmax ? weight[j] * (dot[j] - mean)
                          : mode == Normalize::sum     ? (dot[j] - mean) / total
                                                       : dot[j];
      ASSERT_NEAR(static_cast<double>(got[i]), want, bound<sum_t<scalar>>(want, size))
          << "assignment " << i;
    }
  }
}

template <class scalar> struct OpsCombine : testing::Test {};
TYPED_TEST_SUITE(OpsCombine, RowTypes);

TYPED_TEST(OpsCombine, EqualsASumInDoubleAndMissingRowsNeverLeak) {
  for_each_shape(6, [](Random& random, const PlanCase& plan, int64_t width) {
    const Mixture<TypeParam> m(random, plan, width);
    for (const Normalize mode : kModes) {
      check_combined(m, mode, run_combine(m, mode, Split::whole, kBefore));
      expect_same_bits_for_any_split([&](Split split, int before) {
        const auto result = run_combine(m, mode, split, before);
        return bits_of(result.out, result.weight);
      });
    }
  });
}

TYPED_TEST(OpsCombine, GradientsEqualThoseInDouble) {
  for_each_shape(7, [](Random& random, const PlanCase& plan, int64_t width) {
    const Mixture<TypeParam> m(random, plan, width);
    for (const Normalize mode : {Normalize::softmax, Normalize::sum, Normalize::none}) {
      const auto weight = run_combine(m, mode, Split::whole, kBefore).weight;
      const auto got = run_backward(m, mode, weight, Split::whole, kBefore);
      check_row_gradients(m, mode, got.rows);
      check_score_gradients(m, mode, got.score);
      expect_same_bits_for_any_split([&](Split split, int before) {
        const auto result = run_backward(m, mode, weight, split, before);
        return bits_of(result.rows, result.score, result.source);
      });
    }
  });
}

TYPED_TEST(OpsCombine, GradientsBeyondTheCachesAreStreamed) {
  Random random(8);
  const PlanCase plan = make_plan(random, 130, 32, 33, 1, 0, true);
  const Mixture<TypeParam> m(random, plan, 4160 / sizeof(TypeParam)); // blocks, and what is left
  const auto weight = run_combine(m, Normalize::none, Split::whole, kBefore).weight;
  check_row_gradients(m, Normalize::none,
                      run_backward(m, Normalize::none, weight, Split::threads, kBefore).rows);
}

TYPED_TEST(OpsCombine, BrokenPlansTouchNothingOutside) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    Random random(seed);
    const PlanCase plan = make_broken_plan(random, 65, random.any_of<int64_t>({1, 3, 32}),
                                           random.any_of<int64_t>({1, 33}), random.chance(0.5));
    const Mixture<TypeParam> m(random, plan, random.any_of<int64_t>({3, 64, 65}));
    for (const Normalize mode : kModes) {
      const auto got = run_combine(m, mode, Split::threads, kBefore);
      check_combined(m, mode, got);
      if (mode == Normalize::ones)
        continue;
      const auto gradients = run_backward(m, mode, got.weight, Split::uneven, kBefore);
      check_row_gradients(m, mode, gradients.rows); // the last owner's, where there are several
      check_score_gradients(m, mode, gradients.score);
    }
  }
}

TYPED_TEST(OpsCombine, NothingLiveGivesZerosOrTheResidual) {
  Random random(9);
  PlanCase plan = make_plan(random, 65, 4, 31, 1, 0, true);
  fill_ok(random, plan, 0.0);
  Mixture<TypeParam> m(random, plan, 65);
  for (const Normalize mode : kModes)
    for (const bool added : {false, true}) {
      m.added = added;
      const auto got = run_combine(m, mode, Split::threads, kBefore);
      Guarded<TypeParam> zeros(m.residual.size(), 0);
      EXPECT_TRUE(bits_of(got.out) == bits_of(added ? m.residual : zeros));
    }
}

} // namespace
} // namespace lah::ops
