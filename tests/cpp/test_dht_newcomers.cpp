// Floods of fresh keys cost little, and do not cost those already known their place.
#include <gtest/gtest.h>

#include "base/subnet.hpp"
#include "crypto/sealed_packet.hpp"
#include "dht/newcomer_gate.hpp"

namespace lah::dht {
namespace {

Endpoint at(const char* ip) {
  return *Endpoint::parse(ip, 8081);
}

TEST(Subnet, IsASlash24OrASlash48) {
  EXPECT_EQ(subnet_of(at("198.51.100.1")), subnet_of(at("198.51.100.254")));
  EXPECT_NE(subnet_of(at("198.51.100.1")), subnet_of(at("198.51.101.1")));
  EXPECT_EQ(subnet_of(at("2001:db8:1::1")), subnet_of(at("2001:db8:1:ffff::2")));
  EXPECT_NE(subnet_of(at("2001:db8:1::1")), subnet_of(at("2001:db8:2::1")));
}

TEST(Subnet, PrivateAddressesAreKnown) {
  for (const char* ip : {"127.0.0.1", "::1", "10.1.2.3", "172.16.0.1", "172.31.255.1",
                         "192.168.7.7", "169.254.1.1", "fd00::1", "fe80::1"})
    EXPECT_TRUE(at(ip).is_private()) << ip;
  for (const char* ip : {"1.1.1.1", "172.32.0.1", "192.169.0.1", "2001:db8::1", "fec0::1"})
    EXPECT_FALSE(at(ip).is_private()) << ip;
}

TEST(Subnet, LimitLetsSoManyThrough) {
  SubnetLimit limit(2);
  EXPECT_TRUE(limit.take(at("198.51.100.1")));
  EXPECT_TRUE(limit.take(at("198.51.100.2")));
  EXPECT_FALSE(limit.take(at("198.51.100.3")));
  EXPECT_TRUE(limit.take(at("198.51.101.3")));
  for (int i = 0; i < 10; ++i)
    EXPECT_TRUE(limit.take(at("127.0.0.1")));
}

struct NewcomerGateTest : testing::Test {
  // How many of `per_second` evenly spaced newcomers get in over `duration`.
  size_t admitted(const std::function<Endpoint(size_t)>& from, size_t per_second,
                  Duration duration) {
    size_t count = 0;
    size_t sent = 0;
    for (const Time end = now + duration; now < end;
         now += kSecond / static_cast<Duration>(per_second))
      count += gate.admit(now, from(sent++));
    return count;
  }
  SeededRng rng{1};
  NewcomerGate gate{rng};
  Time now = 1000 * kSecond;
};

TEST_F(NewcomerGateTest, ASubnetGetsItsBurstThenItsRate) {
  const auto one = [](size_t i) { return Endpoint::v4(0xc6336400U + i % 256, 1); };
  const size_t count = admitted(one, 10'000, 10 * kSecond);
  EXPECT_NEAR(static_cast<double>(count),
              Limits::kSubnetNewcomersBurst + 10 * Limits::kSubnetNewcomersPerSecond, 5);
}

TEST_F(NewcomerGateTest, AFloodOfOneSubnetShutsNobodyElseOut) {
  const auto one = [](size_t) { return Endpoint::v4(0xc6336401U, 1); };
  admitted(one, 10'000, 10 * kSecond);
  size_t in = 0;
  for (uint32_t i = 0; i < 200; ++i)
    in += gate.admit(now, Endpoint::v4(0x50000001U + (i << 8), 1));
  EXPECT_EQ(in, 200U);
}

TEST_F(NewcomerGateTest, AllTogetherGetTheGlobalRate) {
  const auto many = [&](size_t) { return Endpoint::v4(static_cast<uint32_t>(rng.u64()) | 1U, 1); };
  const size_t count = admitted(many, 20'000, 10 * kSecond);
  EXPECT_LE(count, Limits::kNewcomersBurst + 10 * Limits::kNewcomersPerSecond + 5);
  EXPECT_GE(count, 10 * Limits::kNewcomersPerSecond);
}

TEST_F(NewcomerGateTest, OneMachineMayStartAThousandNodes) {
  for (size_t i = 0; i < Limits::kNewcomersBurst; ++i)
    EXPECT_TRUE(gate.admit(now, at("127.0.0.1")));
  EXPECT_FALSE(gate.admit(now, at("127.0.0.1")));
}

TEST(Newcomers, WaitForTheirTurn) {
  SeededRng rng(1);
  Newcomers newcomers(rng);
  size_t at_once = 0;
  for (uint32_t i = 0; i < 1000; ++i)
    at_once += newcomers.admit(5, Endpoint::v4(0x50000001U + (i << 8), 1), Buffer(58));
  EXPECT_EQ(at_once, Limits::kNewcomersPerTurn);
  EXPECT_EQ(newcomers.refused(), 1000 - at_once - Limits::kNewcomersWaiting);
  EXPECT_FALSE(newcomers.admit(6, at("198.51.100.1"), Buffer(58))) << "not before those waiting";
  size_t turns = 0;
  for (; newcomers.waiting(); ++turns)
    EXPECT_EQ(newcomers.take_due().size(), Limits::kNewcomersPerTurn);
  EXPECT_EQ(turns, Limits::kNewcomersWaiting / Limits::kNewcomersPerTurn);
}

TEST(PairKeyCache, AFloodOfFreshKeysForgetsNoProvenPeer) {
  SeededRng rng(1);
  crypto::PairKeyCache cache(rng);
  const auto key = [](uint32_t n) {
    crypto::PublicKey made{};
    std::memcpy(made.data() + 4, &n, sizeof(n));
    return made;
  };
  cache.put(key(1), {1});
  cache.keep(key(1));
  cache.put(key(2), {2});
  for (uint32_t n = 10; n < 10 + 4 * Limits::kFreshSealKeys; ++n)
    cache.put(key(n), {});
  ASSERT_NE(cache.find(key(1)), nullptr);
  EXPECT_EQ(*cache.find(key(1)), crypto::PairKey{1});
  EXPECT_EQ(cache.find(key(2)), nullptr);
}

TEST(PairKeyCache, KeepsWhatIsUsed) {
  SeededRng rng(1);
  crypto::PairKeyCache cache(rng);
  for (uint32_t n = 0; n < 3 * Limits::kSealKeyCache; ++n) {
    crypto::PublicKey made{};
    std::memcpy(made.data(), &n, sizeof(n));
    cache.put(made, {});
    cache.keep(made);
    EXPECT_NE(cache.find(crypto::PublicKey{}), nullptr) << n;
  }
}

TEST(SealedPacket, OnlyWhoOwnsAKeyEntersTheCache) {
  SeededRng rng(1);
  const auto own = crypto::Identity::generate(rng);
  const auto peer = crypto::Identity::generate(rng);
  crypto::PacketSealer ours(own, "net", rng);
  crypto::PacketSealer theirs(peer, "net", rng);
  Buffer forged = *theirs.seal(own.public_key(), as_bytes("x"));
  forged.back() ^= std::byte{1};
  EXPECT_FALSE(ours.open(*crypto::parse_packet(forged)));
  EXPECT_FALSE(ours.knows(peer.public_key()));
  EXPECT_TRUE(ours.open(*crypto::parse_packet(*theirs.seal(own.public_key(), as_bytes("x")))));
  EXPECT_TRUE(ours.knows(peer.public_key()));
}

} // namespace
} // namespace lah::dht
