#include "net/turn_times.hpp"

#include <gtest/gtest.h>

namespace lah::net {
namespace {

TEST(TurnTimes, EveryTurnIsBoundedFromAboveWithinAQuarter) {
  TurnTimes times;
  for (Duration turn : {Duration{0}, Duration{3}, Duration{4}, Duration{7}, Duration{8},
                        Duration{1'000'003}, Duration{(Duration{1} << 62) + 5}}) {
    times.add(turn);
    const auto taken = times.take();
    ASSERT_EQ(taken.size(), 1u);
    EXPECT_EQ(taken[0].second, 1u);
    EXPECT_GE(taken[0].first, turn);
    EXPECT_LE(taken[0].first, turn + turn / 4);
  }
}

TEST(TurnTimes, CountsInOrderAndStartsAnew) {
  TurnTimes times;
  times.add(1000);
  times.add(10);
  times.add(1000);
  const auto taken = times.take();
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_LT(taken[0].first, taken[1].first);
  EXPECT_EQ(taken[0].second, 1u);
  EXPECT_EQ(taken[1].second, 2u);
  EXPECT_TRUE(times.take().empty());
}

} // namespace
} // namespace lah::net
