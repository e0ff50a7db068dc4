// swiglu and its gradients against double precision, at every width, and at the ends of floats.
#include "ops_fixture.hpp"

namespace lah::ops {
namespace {

template <class scalar> struct GateCase {
  using real = sum_t<scalar>;
  int64_t rows, width;
  Guarded<scalar> x, grad;
  Guarded<real> weight;
  bool weighted;

  GateCase(Random& random, int64_t rows_, int64_t width_)
      : rows(rows_), width(width_), x(random.normals<scalar>(rows * 2 * width)),
        grad(random.normals<scalar>(rows * width)), weight(random.normals<real>(rows)),
        weighted(random.chance(0.5)) {}

  double factor(int64_t row) const { return weighted ? static_cast<double>(weight[row]) : 1.0; }
};

template <class scalar>
Guarded<scalar> run_swiglu(const GateCase<scalar>& c, Split split, int before) {
  Guarded<scalar> out(c.rows * c.width, before);
  const SwigluArgs args{c.x.data(), c.weighted ? c.weight.data() : nullptr, c.rows, c.width,
                        out.data()};
  over(split, c.rows,
       [&](auto begin, auto end) { cpu::swiglu(args, kScalar<scalar>, begin, end); });
  return out;
}

template <class scalar> struct GateGradients {
  Guarded<scalar> x;
  Guarded<sum_t<scalar>> weight;
};

template <class scalar>
GateGradients<scalar> run_backward(const GateCase<scalar>& c, Split split, int before) {
  GateGradients<scalar> out{Guarded<scalar>(c.x.size(), before),
                            Guarded<sum_t<scalar>>(c.weighted ? c.rows : 0, before)};
  const SwigluBackwardArgs args{.grad = c.grad.data(),
                                .x = c.x.data(),
                                .weight = c.weighted ? c.weight.data() : nullptr,
                                .rows = c.rows,
                                .width = c.width,
                                .grad_x = out.x.data(),
                                .grad_weight = c.weighted ? out.weight.data() : nullptr};
  over(split, c.rows,
       [&](auto begin, auto end) { cpu::swiglu_backward(args, kScalar<scalar>, begin, end); });
  return out;
}

template <class scalar>
void check_values(const GateCase<scalar>& c, const Guarded<scalar>& out,
                  const GateGradients<scalar>& gradients) {
  const auto near = [](scalar got, double want, double size) {
    return std::abs(wide(got) - want) <= bound<scalar>(want, size);
  };
  for (int64_t r = 0; r < c.rows; ++r) {
    double of_weight = 0, size = 0;
    for (int64_t i = 0; i < c.width; ++i) {
      const int64_t at = r * 2 * c.width + i;
      const double gate = wide(c.x[at]), up = wide(c.x[at + c.width]), w = c.factor(r);
      const double d = wide(c.grad[r * c.width + i]);
      const double s = 1 / (1 + std::exp(-gate)), silu = gate * s;
      const double of_gate = d * w * up * (s + silu * (1 - s));
      ASSERT_TRUE(near(out[r * c.width + i], silu * up * w, std::abs(silu * up * w)))
          << "row " << r << ", element " << i;
      ASSERT_TRUE(near(gradients.x[at], of_gate, std::abs(d * w * up))) << "row " << r;
      ASSERT_TRUE(near(gradients.x[at + c.width], d * w * silu, std::abs(d * w * silu)))
          << "row " << r;
      of_weight += d * silu * up, size += std::abs(d * silu * up);
    }
    if (c.weighted) {
      ASSERT_NEAR(static_cast<double>(gradients.weight[r]), of_weight,
                  bound<sum_t<scalar>>(of_weight, size))
          << "row " << r;
    }
  }
}

template <class scalar> struct OpsSwiglu : testing::Test {};
TYPED_TEST_SUITE(OpsSwiglu, RowTypes);

TYPED_TEST(OpsSwiglu, EqualsDoublePrecisionForAnySplit) {
  Random random(1);
  for (const int64_t rows : kTokenCounts)
    for (const int64_t width : kWidths) {
      SCOPED_TRACE(testing::Message() << rows << " rows, width " << width);
      const GateCase<TypeParam> c(random, rows, width);
      check_values(c, run_swiglu(c, Split::whole, kBefore), run_backward(c, Split::whole, kBefore));
      expect_same_bits_for_any_split([&](Split split, int before) {
        const auto gradients = run_backward(c, split, before);
        return bits_of(run_swiglu(c, split, before), gradients.x, gradients.weight);
      });
    }
}

TYPED_TEST(OpsSwiglu, OutputsBeyondTheCachesAreStreamed) {
  Random random(2);
  const GateCase<TypeParam> c(random, 140, 32832 / sizeof(TypeParam)); // blocks, and what is left
  check_values(c, run_swiglu(c, Split::threads, kBefore), run_backward(c, Split::threads, kBefore));
}

TYPED_TEST(OpsSwiglu, NoRowsAndNoWidth) {
  Random random(3);
  for (const auto& [rows, width] : {std::pair{0, 65}, std::pair{65, 0}}) {
    GateCase<TypeParam> c(random, rows, width);
    c.weighted = true;
    check_values(c, run_swiglu(c, Split::uneven, kBefore), run_backward(c, Split::uneven, kBefore));
  }
}

TYPED_TEST(OpsSwiglu, GatesAtTheEndsOfFloats) {
  using real = sum_t<TypeParam>;
  const double largest = std::is_same_v<TypeParam, Float16> ? 65504 : 3e38;
  const double gates[] = {largest, -largest, 1e4, -1e4, 88, -88, 0.0, -0.0};
  Random random(4);
  GateCase<TypeParam> c(random, 1, std::size(gates));
  c.weighted = false;
  for (int64_t i = 0; i < c.width; ++i) {
    c.x[i] = narrow<TypeParam>(static_cast<real>(gates[i]));
    c.x[c.width + i] = narrow<TypeParam>(real{1});
  }
  const auto out = run_swiglu(c, Split::whole, kBefore);
  for (int64_t i = 0; i < c.width; ++i)
    EXPECT_NEAR(wide(out[i]), std::max(wide(c.x[i]), 0.0), 1e-30) << "gate " << gates[i];
  for (const TypeParam grad : run_backward(c, Split::whole, kBefore).x)
    EXPECT_TRUE(std::isfinite(wide(grad)));
}

TYPED_TEST(OpsSwiglu, NanAndInfinityStayInTheirRow) {
  using real = sum_t<TypeParam>;
  Random random(5);
  for (const float value : {kNan, kInf, -kInf}) {
    GateCase<TypeParam> c(random, 3, 65);
    c.weighted = true;
    for (int64_t i = 0; i < 2 * c.width; ++i)
      c.x[2 * c.width + i] = narrow<TypeParam>(static_cast<real>(value));
    const auto out = run_swiglu(c, Split::whole, kBefore);
    const auto gradients = run_backward(c, Split::whole, kBefore);
    for (int64_t i = 0; i < out.size(); ++i)
      EXPECT_EQ(std::isfinite(wide(out[i])), i / c.width != 1);
    for (int64_t r = 0; r < c.rows; ++r)
      EXPECT_EQ(std::isfinite(static_cast<double>(gradients.weight[r])), r != 1);
  }
}

} // namespace
} // namespace lah::ops
