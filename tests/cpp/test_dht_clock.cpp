// Whose clock a node believes.
#include <gtest/gtest.h>

#include "base/limits.hpp"
#include "dht/clock_offset.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

constexpr WallMs kOurs = 1'700'000'000'000;

Endpoint public_address(unsigned network, unsigned host = 1) {
  return Endpoint::v4(0x08000000U + (network << 16) + host, 7);
}

struct ClockOffsetTest : testing::Test {
  void hear(const Endpoint& from, int64_t offset_ms) {
    clock.sample(now, from, kOurs + static_cast<WallMs>(offset_ms), kOurs, 0);
  }
  ClockOffset clock;
  Time now = 0;
};

TEST_F(ClockOffsetTest, IsTheMedianOfEightNetworks) {
  for (unsigned network = 0; network < 8; ++network)
    hear(public_address(network), 300'000 + network);
  EXPECT_GE(clock.ms(), 300'003);
  EXPECT_LE(clock.ms(), 300'004);
  EXPECT_EQ(clock.corrected(kOurs), kOurs + static_cast<WallMs>(clock.ms()));
}

TEST_F(ClockOffsetTest, CountsHalfTheRoundTripAsTheWayBack) {
  for (unsigned network = 0; network < 8; ++network)
    clock.sample(now, public_address(network), kOurs + 5000, kOurs, milliseconds(200));
  EXPECT_EQ(clock.ms(), 5100);
}

TEST_F(ClockOffsetTest, BelievesItsOwnClockWhileFewPeersSpoke) {
  for (unsigned network = 0; network < 4; ++network)
    hear(public_address(network), -300'000);
  EXPECT_EQ(clock.ms(), 0);
}

TEST_F(ClockOffsetTest, AMinorityOfLiarsMovesItWithinTheRangeOfTheHonest) {
  for (unsigned network = 0; network < 11; ++network)
    hear(public_address(network), 20'000 + network);
  for (unsigned network = 20; network < 30; ++network)
    hear(public_address(network), network % 2 == 0 ? INT64_MAX / 2 : 3'600'000);
  EXPECT_GE(clock.ms(), 20'000);
  EXPECT_LE(clock.ms(), 20'010);
}

TEST_F(ClockOffsetTest, OneNetworkHasOneVoteHoweverManyAddresses) {
  for (unsigned host = 1; host < 200; ++host)
    hear(public_address(1, host), 3'600'000);
  for (unsigned host = 1; host < 200; ++host)
    hear(*Endpoint::parse("2001:db8:" + std::to_string(host) + "::1", 7), 3'600'000);
  EXPECT_EQ(clock.votes(), 2U);
  EXPECT_EQ(clock.ms(), 0);
}

TEST_F(ClockOffsetTest, PrivateAddressesVoteOneByOneAndLoopbackByPort) {
  for (uint8_t host = 1; host <= 8; ++host)
    hear(Endpoint::v4(0xc0a80100U + host, 7), 60'000);
  EXPECT_EQ(clock.ms(), 60'000);
  hear(Endpoint::v4(0xc0a80101U, 8), 0); // the same machine
  EXPECT_EQ(clock.votes(), 8U);
  for (uint16_t port = 1; port <= 3; ++port)
    hear(Endpoint::v4(0x7f000001, port), 0);
  EXPECT_EQ(clock.votes(), 11U);
}

TEST_F(ClockOffsetTest, DifferencesOfASecondAreThePathsNotTheClock) {
  for (unsigned network = 0; network < 20; ++network)
    hear(public_address(network), network % 3 == 0 ? -900 : 900);
  EXPECT_EQ(clock.ms(), 0);
}

TEST_F(ClockOffsetTest, VotesAreBoundedAndGrowOld) {
  for (unsigned network = 0; network < 200; ++network) {
    hear(public_address(network), 60'000);
    now += ClockOffset::kPauseWhenFull;
  }
  EXPECT_EQ(clock.votes(), Limits::kClockSources);
  EXPECT_EQ(clock.ms(), 60'000);
  now += ClockOffset::kLifetime + kSecond;
  hear(public_address(0), 60'000);
  EXPECT_EQ(clock.votes(), 1U);
  EXPECT_EQ(clock.ms(), 0);
}

TEST_F(ClockOffsetTest, AClockAtEitherEndOfTimeOverflowsNothing) {
  for (unsigned network = 0; network < 9; ++network)
    clock.sample(now, public_address(network), network % 2 == 0 ? UINT64_MAX : 0, kOurs, kSecond);
  EXPECT_LE(std::abs(clock.ms()), ClockOffset::kFarthest + 500);
}

// dht-and-transport §5.6: a clock five minutes off is no reason to be refused.
TEST(SimClock, ANodeFiveMinutesOffJoinsStoresAndIsFound) {
  sim::VirtualNetwork net(61, {}, sim::CipherKind::kHash);
  sim::grow(net, 30, 5 * kSecond);
  for (const int64_t skew : {-300'000, 300'000}) {
    const size_t wrong = net.add({.seeds = {0}, .clock_skew_ms = skew});
    net.run_for(5 * kSecond);
    EXPECT_TRUE(net.node(wrong).ready());
    EXPECT_NEAR(static_cast<double>(net.node(wrong).status().clock_offset_ms),
                static_cast<double>(-skew), 100);
    // A minute is what a server's declaration lives: without a correction it would be dead, or too
    // long, on arrival.
    const auto record =
        sim::record_of(net, wrong, "skewed" + std::to_string(skew), "value", 60'000);
    EXPECT_GE(net.store(wrong, record).replicas, 8U);
    const auto of_others = sim::record_of(net, 5, "right" + std::to_string(skew), "value", 60'000);
    net.store(5, of_others);
    EXPECT_TRUE(sim::holds(net.get(3, record.key), record));
    EXPECT_TRUE(sim::holds(net.get(wrong, of_others.key), of_others));
    net.run_for(60 * kSecond);
    EXPECT_TRUE(net.get(wrong, record.key).records.empty());
    EXPECT_TRUE(net.get(wrong, of_others.key).records.empty());
  }
}

TEST(SimClock, AThirdOfTheNetworkBeingWrongMovesNobodyElse) {
  sim::VirtualNetwork net(62, {}, sim::CipherKind::kHash);
  net.add({});
  for (size_t i = 1; i < 60; ++i) {
    net.add({.seeds = {0}, .clock_skew_ms = i % 3 == 0 ? 240'000 : 0});
    net.run_for(milliseconds(100));
  }
  net.run_for(1200 * kSecond); // corrections that fed on corrections would drift
  for (size_t i = 0; i < net.size(); ++i)
    EXPECT_NEAR(static_cast<double>(net.node(i).status().clock_offset_ms),
                i > 0 && i % 3 == 0 ? -240'000 : 0, 100)
        << i;
}

} // namespace
} // namespace lah::dht
