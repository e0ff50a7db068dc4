// The 8-bit float beside its definition: the nearest of its values, found by trying all of them.
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "base/float8.hpp"

namespace lah {
namespace {

// The value of a code without sign, by the formula of the format.
double value_of(uint32_t code) {
  const auto exponent = static_cast<int>(code >> 3), mantissa = static_cast<int>(code & 7u);
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
}

// The code of the value nearest to x; between two the even one; beyond the largest the largest.
uint32_t nearest(double x) {
  const double magnitude = std::fabs(x);
  uint32_t best = 0;
  for (uint32_t code = 1; code < 0x7f; ++code) {
    const double closer =
        std::fabs(magnitude - value_of(best)) - std::fabs(magnitude - value_of(code));
    if (closer > 0 || (closer == 0 && code % 2 == 0))
      best = code;
  }
  return best | (std::signbit(x) ? 0x80u : 0u);
}

TEST(Float8, EveryCodeHasItsValue) {
  for (uint32_t code = 0; code < 0x7f; ++code) {
    EXPECT_EQ(float_of_e4m3(code), value_of(code)) << code;
    EXPECT_EQ(float_of_e4m3(code | 0x80u), -value_of(code)) << code;
  }
  EXPECT_TRUE(std::signbit(float_of_e4m3(0x80u)));
  EXPECT_TRUE(std::isnan(float_of_e4m3(0x7fu)));
  EXPECT_TRUE(std::isnan(float_of_e4m3(0xffu)));
}

TEST(Float8, RoundsToTheNearestAndTiesToEven) {
  std::mt19937 random(1);
  std::normal_distribution<float> exponent(0.0f, 5.0f), normal;
  for (int i = 0; i < 20'000; ++i) {
    const float x = normal(random) * std::exp2(exponent(random));
    ASSERT_EQ(e4m3_of_float(x), nearest(x)) << x;
  }
  for (uint32_t code = 0; code < 0x7e; ++code) {
    const auto tie = static_cast<float>((value_of(code) + value_of(code + 1)) / 2);
    for (const float x : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1e9f)}) {
      EXPECT_EQ(e4m3_of_float(x), nearest(x)) << x;
      EXPECT_EQ(e4m3_of_float(-x), nearest(-x)) << -x;
    }
  }
}

TEST(Float8, EveryBfloat16) {
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    const auto x = std::bit_cast<float>(upper << 16);
    const uint32_t sign = upper >> 8 & 0x80u;
    ASSERT_EQ(e4m3_of_float(x),
              std::isnan(x) ? sign | 0x7fu : nearest(std::fmin(std::fmax(x, -1e6f), 1e6f)))
        << x;
  }
}

TEST(Float8, SaturatesAndKeepsNaN) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float x : {448.0f, 448.1f, 464.0f, 480.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(e4m3_of_float(x), 0x7eu) << x;
    EXPECT_EQ(e4m3_of_float(-x), 0xfeu) << x;
  }
  EXPECT_EQ(e4m3_of_float(std::numeric_limits<float>::quiet_NaN()) & 0x7fu, 0x7fu);
  EXPECT_EQ(e4m3_of_float(std::numeric_limits<float>::denorm_min()), 0u);
  EXPECT_EQ(e4m3_of_float(-0.0f), 0x80u);
}

} // namespace
} // namespace lah
