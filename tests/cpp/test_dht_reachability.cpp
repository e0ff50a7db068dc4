// Whether a node knows if strangers can reach it, and behaves accordingly.
#include <gtest/gtest.h>

#include "base/limits.hpp"
#include "dht/reachability.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

using State = Reachability::State;

struct ReachabilityTest : testing::Test {
  // A probe that was passed on to two others, of whom nobody answers in time.
  uint64_t silent_probe() {
    const uint64_t nonce = reach.start(now, rng);
    reach.passed_on(now, 2);
    now += Reachability::kWait;
    reach.on_timer(now);
    return nonce;
  }

  SeededRng rng{1};
  Reachability reach;
  Time now = kSecond;
  const Endpoint known = Endpoint::v4(0x08080808, 1);
  const Endpoint stranger = Endpoint::v4(0x08080809, 1);
};

TEST_F(ReachabilityTest, AStrangerWhoDialsBackProvesIt) {
  EXPECT_FALSE(reach.due(now));
  now += Reachability::kFirst;
  EXPECT_TRUE(reach.due(now));
  const uint64_t nonce = reach.start(now, rng);
  reach.passed_on(now, 1);
  reach.dialled_back(now, stranger, nonce + 1);
  EXPECT_EQ(reach.state(), State::kUnknown);
  reach.dialled_back(now, stranger, nonce);
  EXPECT_EQ(reach.state(), State::kPublic);
  EXPECT_FALSE(reach.due(now + 1000 * kSecond));
}

TEST_F(ReachabilityTest, SomebodyWeSentToProvesNothingUntilItIsForgotten) {
  reach.sent(now, known);
  reach.heard(now, known);
  reach.dialled_back(now, known, reach.start(now, rng));
  EXPECT_EQ(reach.state(), State::kUnknown);
  now += 2 * Reachability::kMemory;
  reach.heard(now, known);
  EXPECT_EQ(reach.state(), State::kPublic);
}

TEST_F(ReachabilityTest, OnlySilenceOfSeveralProbesInARowMeansUnreachable) {
  for (int probe = 1; probe < Reachability::kSilentProbes; ++probe) {
    silent_probe();
    EXPECT_EQ(reach.state(), State::kUnknown);
  }
  for (int i = 0; i < 20; ++i) { // nobody to ask, or somebody we had sent to: no evidence
    reach.start(now, rng);
    reach.passed_on(now, 0);
    reach.sent(now, known);
    const uint64_t nonce = reach.start(now, rng);
    reach.passed_on(now, 2);
    reach.dialled_back(now, known, nonce);
    now += Reachability::kWait;
    reach.on_timer(now);
    EXPECT_EQ(reach.state(), State::kUnknown);
  }
  const uint64_t nonce = silent_probe();
  EXPECT_EQ(reach.state(), State::kUnreachable);
  reach.dialled_back(now, stranger, nonce); // too late to be an answer
  EXPECT_EQ(reach.state(), State::kUnreachable);
  EXPECT_TRUE(reach.due(now + Reachability::kRetry));
  reach.heard(now, stranger); // the port was opened
  EXPECT_EQ(reach.state(), State::kPublic);
}

TEST_F(ReachabilityTest, AmongNeighboursANodeIsPublicEnoughAndAMoveOpensTheQuestion) {
  reach.observed(now, Endpoint::v4(0xc0a80105, 7));
  EXPECT_EQ(reach.state(), State::kPublic);
  reach.observed(now, Endpoint::v4(0x08010101, 7));
  EXPECT_EQ(reach.state(), State::kUnknown);
  EXPECT_TRUE(reach.due(now + Reachability::kFirst));
  reach.observed(now, Endpoint::v4(0x08010101, 8)); // another port alone is no other place
  reach.heard(now, stranger);
  EXPECT_EQ(reach.state(), State::kUnknown); // perhaps we sent to it before the move
  now += Reachability::kMemory;
  reach.heard(now, stranger);
  EXPECT_EQ(reach.state(), State::kPublic);
}

TEST_F(ReachabilityTest, MoreAddressesThanItRemembersProveNothing) {
  for (uint32_t i = 0; i <= Limits::kContactedAddresses; ++i)
    reach.sent(now, Endpoint::v4(0x09000000 + i, 1));
  reach.heard(now, stranger);
  EXPECT_EQ(reach.state(), State::kUnknown);
  now += 2 * Reachability::kMemory;
  reach.sent(now, known);
  reach.heard(now, stranger);
  EXPECT_EQ(reach.state(), State::kPublic);
}

} // namespace
} // namespace lah::dht

namespace lah::sim {
namespace {

using State = dht::Reachability::State;

TEST(SimReachability, NodesFindOutAndTheUnreachableLeaveTheTables) {
  VirtualNetwork net(81, {milliseconds(10), milliseconds(60), 0.05, 0}, CipherKind::kHash);
  for (size_t i = 0; i < 300; ++i)
    net.add({.seeds = i == 0 ? std::vector<size_t>{} : std::vector<size_t>{0, net.rng().below(i)}});
  net.settle();
  net.run_for(30 * kSecond);
  std::vector<size_t> hidden;
  for (const NatKind nat :
       {NatKind::kAddressRestricted, NatKind::kPortRestricted, NatKind::kSymmetric})
    hidden.push_back(net.add({.seeds = {0, 1}, .nat = nat}));
  const size_t open_nat = net.add({.seeds = {0, 1}, .nat = NatKind::kFullCone});
  net.run_for(240 * kSecond);

  size_t found_public = 0;
  for (size_t i = 0; i < 300; ++i) {
    EXPECT_NE(net.node(i).status().reachability, State::kUnreachable) << i;
    found_public += net.node(i).status().reachability == State::kPublic;
  }
  EXPECT_GE(found_public, 270U);
  EXPECT_EQ(net.node(open_nat).status().reachability, State::kPublic);
  for (const size_t node : hidden) {
    EXPECT_EQ(net.node(node).status().reachability, State::kUnreachable) << node;
    for (size_t i = 0; i < 300; ++i)
      EXPECT_FALSE(net.node(i).table().contains(net.node(node).id())) << i << " " << node;
    const dht::Record record = record_of(net, node, "n" + std::to_string(node), "value");
    EXPECT_GE(net.store(node, record).replicas, 8U); // it goes on asking
    EXPECT_TRUE(holds(net.get(9, record.key), record));
  }
}

TEST(SimReachability, ASmallPrivateNetworkStaysAsItIs) {
  VirtualNetwork net(82, {}, CipherKind::kHash);
  for (uint32_t i = 0; i < 8; ++i)
    net.add({.seeds = i == 0 ? std::vector<size_t>{} : std::vector<size_t>{0},
             .endpoint = Endpoint::v4(0xc0a80101 + i, 8081)});
  net.run_for(300 * kSecond);
  for (size_t i = 0; i < net.size(); ++i) {
    EXPECT_EQ(net.node(i).status().reachability, State::kPublic);
    EXPECT_EQ(net.node(i).table().size(), 7U);
  }
}

TEST(SimReachability, AFewNodesOfTheInternetAreNeverTakenForUnreachable) {
  for (const size_t nodes : {2U, 3U, 6U}) {
    VirtualNetwork net(83, {milliseconds(10), milliseconds(60), 0.10, 0}, CipherKind::kHash);
    for (size_t i = 0; i < nodes; ++i)
      net.add({.seeds = i == 0 ? std::vector<size_t>{} : std::vector<size_t>{0}});
    net.run_for(600 * kSecond);
    for (size_t i = 0; i < nodes; ++i) {
      EXPECT_NE(net.node(i).status().reachability, State::kUnreachable);
      EXPECT_EQ(net.node(i).table().size(), nodes - 1);
    }
  }
}

TEST(SimReachability, ANodeTellsANatByItsOwnAddresses) {
  VirtualNetwork net(84, {}, CipherKind::kHash);
  grow(net, 5, kSecond);
  const Endpoint inside = Endpoint::v4(0xc0a80105, 8081);
  const auto with_local = [&](const Endpoint& local) {
    return [local](dht::NodeConfig& config) { config.local_addresses = {local}; };
  };
  const size_t behind =
      net.add({.seeds = {0}, .nat = NatKind::kFullCone, .configure = with_local(inside)});
  const Endpoint outside = Endpoint::v4(0x08080808, 8081);
  const size_t direct =
      net.add({.seeds = {0}, .endpoint = outside, .configure = with_local(outside)});
  net.run_for(5 * kSecond);
  EXPECT_EQ(net.node(behind).status().behind_nat, true);
  EXPECT_EQ(net.node(direct).status().behind_nat, false);
  EXPECT_EQ(net.node(0).status().behind_nat, std::nullopt); // knows no address of its own
}

} // namespace
} // namespace lah::sim
