// The simulated network itself: where nodes are, how they are reached, what it does to datagrams.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

TEST(SimNetwork, HalfOfAllPairsAreWithin110Milliseconds) {
  SeededRng rng(1);
  std::vector<Duration> rtts;
  for (int i = 0; i < 20'001; ++i)
    rtts.push_back(Geography::rtt(Geography::draw(rng), Geography::draw(rng)));
  std::nth_element(rtts.begin(), rtts.begin() + 10'000, rtts.end());
  EXPECT_EQ(rtts[10'000], milliseconds(110));
}

TEST(SimNetwork, EveryNodeHasAnAddressAndEveryAddressOneNode) {
  std::set<std::pair<uint8_t, uint8_t>> nets;
  for (size_t i = 0; i < 200'000; i = i < 2000 ? i + 1 : i + 97) {
    const Endpoint endpoint = planned_endpoint(i);
    EXPECT_EQ(planned_index(endpoint), i);
    EXPECT_TRUE(dht::is_sendable(endpoint));
    if (i < 2000 && endpoint.is_v4()) {
      EXPECT_TRUE(nets.insert({endpoint.ip[12], endpoint.ip[13]}).second);
    }
  }
  EXPECT_FALSE(planned_index(crowded_endpoint(2, 7)));
  EXPECT_FALSE(planned_index(Endpoint::v4(0x0b000002, kNodePort)));
  EXPECT_FALSE(planned_endpoint(5).is_loopback());
}

TEST(SimNetwork, AnAnswerTakesTheRoundTripOfItsRegions) {
  VirtualNetwork net(3, Faults::geographic(), CipherKind::kHash);
  net.add({.region = Geography::kAsia});
  net.add({.region = Geography::kSouthAmerica});
  net.settle();
  dht::PingResult result;
  net.node(0).start_ping(net.now(), net.wall(0), net.endpoint(1), net.now() + kSecond * 5,
                         [&](const dht::PingResult& ping) { result = ping; });
  net.collect(0);
  net.run_for(5 * kSecond);
  EXPECT_EQ(net.rtt(0, 1), milliseconds(320));
  EXPECT_GE(result.rtt, milliseconds(288));
  EXPECT_LE(result.rtt, milliseconds(384));
}

TEST(SimNetwork, ASettledNetworkFindsWhatItStores) {
  VirtualNetwork net(4, Faults::geographic(), CipherKind::kHash);
  for (int i = 0; i < 600; ++i)
    net.add({});
  net.settle();
  for (size_t i = 0; i < net.size(); ++i) {
    net.set_passive(i, true);
    EXPECT_GT(net.node(i).table().size(), 256U + 60U);
  }
  for (size_t i = 0; i < 20; ++i) {
    net.set_passive(i, false);
    net.acquaint(i);
    const dht::Record record = record_of(net, i, "r" + std::to_string(i), "value");
    EXPECT_GE(net.store(i, record).replicas, 8U);
    net.set_passive(i + 20, false);
    EXPECT_TRUE(holds(net.get(i + 20, record.key), record));
  }
}

TEST(SimNetwork, AFrozenNodeAnswersWhenItThaws) {
  VirtualNetwork net(5, Faults::constant_rtt(milliseconds(20)), CipherKind::kHash);
  net.add({});
  net.add({});
  net.set_frozen(1, true);
  net.inject(1, net.endpoint(0), payload("x"));
  net.run_for(kSecond);
  EXPECT_EQ(net.node(1).status().packets_in, 0U);
  net.set_frozen(1, false);
  net.run_for(kSecond);
  EXPECT_EQ(net.node(1).status().packets_in, 1U);

  net.set_frozen(1, true);
  for (size_t i = 0; i < 2 * VirtualNetwork::kFrozenDatagrams; ++i)
    net.inject(1, net.endpoint(0), payload("x"));
  net.run_for(kSecond);
  net.set_frozen(1, false);
  net.run_for(kSecond);
  EXPECT_EQ(net.node(1).status().packets_in, 1U + VirtualNetwork::kFrozenDatagrams);
}

TEST(SimNetwork, NatsLetInWhomTheirClassSays) {
  const Endpoint outside = planned_endpoint(0);
  const Endpoint friendly = planned_endpoint(1);
  const Endpoint stranger = planned_endpoint(2);
  Endpoint other_port = friendly;
  other_port.port = 9;
  const auto admitted = [&](NatKind kind, const Endpoint& from) {
    Nat nat(kind, outside, 60 * kSecond);
    const Endpoint mapped = nat.outbound(0, friendly);
    EXPECT_EQ(mapped.ip, outside.ip);
    EXPECT_EQ(nat.outbound(0, stranger).port == mapped.port, kind != NatKind::kSymmetric);
    EXPECT_FALSE(nat.admits(61 * kSecond, mapped.port, friendly));
    EXPECT_FALSE(nat.admits(0, static_cast<uint16_t>(mapped.port - 1), friendly));
    Nat fresh(kind, outside, 60 * kSecond);
    return fresh.admits(59 * kSecond, fresh.outbound(0, friendly).port, from);
  };
  for (const NatKind kind : {NatKind::kFullCone, NatKind::kAddressRestricted,
                             NatKind::kPortRestricted, NatKind::kSymmetric})
    EXPECT_TRUE(admitted(kind, friendly));
  EXPECT_TRUE(admitted(NatKind::kFullCone, stranger));
  EXPECT_FALSE(admitted(NatKind::kAddressRestricted, stranger));
  EXPECT_TRUE(admitted(NatKind::kAddressRestricted, other_port));
  EXPECT_FALSE(admitted(NatKind::kPortRestricted, other_port));
  EXPECT_FALSE(admitted(NatKind::kSymmetric, other_port));
}

TEST(SimNetwork, ANodeBehindANatStoresAndFinds) {
  for (const NatKind kind : {NatKind::kFullCone, NatKind::kAddressRestricted,
                             NatKind::kPortRestricted, NatKind::kSymmetric}) {
    VirtualNetwork net(6, {}, CipherKind::kHash);
    grow(net, 12, 5 * kSecond);
    const size_t hidden = net.add({.seeds = {0}, .nat = kind});
    net.run_for(5 * kSecond);
    const dht::Record record = record_of(net, hidden, "n", "value");
    EXPECT_GE(net.store(hidden, record).replicas, 8U);
    EXPECT_TRUE(holds(net.get(5, record.key), record));
    EXPECT_TRUE(holds(net.get(hidden, record.key), record));
  }
}

TEST(SimNetwork, EventsComeInOrderOfTimeThenOfPlanning) {
  EventQueue queue;
  SeededRng rng(7);
  std::vector<std::pair<Time, size_t>> expected;
  for (size_t i = 0; i < 3000; ++i) {
    const Time at = static_cast<Time>(rng.below(500));
    expected.emplace_back(at, i);
    if (i % 3 == 0)
      queue.push_delivery(at, i, {{}, {}, payload(std::to_string(i))});
    else
      queue.push_timer(at, i);
  }
  std::stable_sort(expected.begin(), expected.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [at, host] : expected) {
    const Event event = queue.pop();
    EXPECT_EQ(event.at, at);
    EXPECT_EQ(event.host, host);
    if (!event.is_timer()) {
      EXPECT_EQ(queue.take(event).bytes, payload(std::to_string(host)));
    }
  }
  EXPECT_TRUE(queue.empty());
}

} // namespace
} // namespace lah::sim
