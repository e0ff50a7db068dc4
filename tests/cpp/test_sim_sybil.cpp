// Networks that one attacker filled with identities.
#include "sim/sybil.hpp"

#include <gtest/gtest.h>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

TEST(SimSybil, SybilsEnterTablesTakeRecordsAndKeepNone) {
  VirtualNetwork net(41, Faults::constant_rtt(milliseconds(40)), CipherKind::kHash);
  grow(net, 100, 10 * kSecond);
  const dht::Id key = named_key("a");
  const std::vector<size_t> sybils =
      add_sybils(net, {.count = 40, .subnets = 20, .near = key, .grinding = 16});
  net.run_for(120 * kSecond);
  size_t met = 0;
  for (const size_t sybil : sybils)
    met += net.node(7).table().contains(net.node(sybil).id());
  EXPECT_GT(met, 5U);

  const dht::Record record = record_of(net, 7, "a", "value");
  const size_t replicas = net.store(7, record).replicas;
  size_t holders = 0;
  for (size_t i = 0; i < 100; ++i)
    holders += i != 7 && !net.node(i).storage().get(key, net.wall(i)).empty();
  EXPECT_LT(holders, replicas);
}

TEST(SimSybil, SybilsAreDeterministicToo) {
  const auto hash = [] {
    VirtualNetwork net(42, {}, CipherKind::kHash);
    grow(net, 20, 5 * kSecond);
    add_sybils(net, {.count = 10, .subnets = 1, .near = named_key("a"), .grinding = 8});
    net.run_for(20 * kSecond);
    return net.log_hash();
  };
  EXPECT_EQ(hash(), hash());
}

struct Outcome {
  size_t stored = 0; // at an honest node other than the owner
  size_t found = 0;
  double honest_replicas = 0; // on average
};

// Honest nodes store and get under random keys; or all under one, if an attack aims at it.
Outcome exchange(uint64_t seed, size_t honest, const SybilOptions& options, size_t rounds) {
  VirtualNetwork net(seed, {}, CipherKind::kHash);
  grow(net, honest, 60 * kSecond);
  add_sybils(net, options);
  net.run_for(180 * kSecond);
  Outcome outcome;
  for (size_t i = 0; i < rounds; ++i) {
    const size_t owner = net.rng().below(honest);
    const size_t reader = (owner + 1 + net.rng().below(honest - 1)) % honest;
    const std::string name = options.near ? "aimed" : std::to_string(i);
    const dht::Record record = record_of(net, owner, name, "value");
    net.store(owner, record);
    size_t holders = 0;
    for (size_t n = 0; n < honest; ++n)
      holders += n != owner && net.node(n).storage().find(record.key, record.owner) != nullptr;
    outcome.stored += holders > 0;
    outcome.found += holds(net.get(reader, record.key), record);
    outcome.honest_replicas += static_cast<double>(holders) / static_cast<double>(rounds);
  }
  return outcome;
}

// Of a hundred nodes so many are Sybils: among 30 every record is found, among 50 all but one of a
// hundred.
void expect_exchange(size_t percent, size_t subnets, size_t invented) {
  constexpr size_t kHonest = 100;
  constexpr size_t kRounds = 100;
  const Outcome outcome = exchange(
      1, kHonest,
      {.count = kHonest * percent / (100 - percent), .subnets = subnets, .invented = invented},
      kRounds);
  EXPECT_GE(outcome.stored, percent <= 30 ? kRounds : kRounds - 1);
  EXPECT_GE(outcome.found, percent <= 30 ? kRounds : kRounds - 1);
}

TEST(SimSybil, ThirtyOfAHundredHideNoRecord) {
  expect_exchange(30, 0, 0);
}

TEST(SimSybil, ThirtyOfAHundredInFewSubnetsHideNoRecord) {
  expect_exchange(30, 4, 0);
}

TEST(SimSybil, FiftyOfAHundredHideNoRecord) {
  expect_exchange(50, 0, 0);
}

TEST(SimSybil, FiftyOfAHundredInFewSubnetsHideNoRecord) {
  expect_exchange(50, 4, 0);
}

// Each Sybil names four of its kind and twelve that it made up, all nearer than anybody there is.
TEST(SimSybil, ThirtyOfAHundredWhoInventContactsHideNoRecord) {
  expect_exchange(30, 0, 30'000);
}

TEST(SimSybil, FiftyOfAHundredWhoInventContactsHideNoRecord) {
  expect_exchange(50, 0, 30'000);
}

// Twenty ids nearer to a key than all others, as many as an attacker cares to make; their addresses
// are what is dear.
TEST(SimSybil, ACrowdOfOneSubnetAroundAKeyTakesFewReplicas) {
  const Outcome outcome = exchange(
      1, 100, {.count = 20, .subnets = 1, .near = named_key("aimed"), .grinding = 1000}, 50);
  EXPECT_EQ(outcome.found, 50U);
  EXPECT_GE(outcome.honest_replicas, 0.9 * (Limits::kReplicas - Limits::kResultsPerSubnet));
}

} // namespace
} // namespace lah::sim
