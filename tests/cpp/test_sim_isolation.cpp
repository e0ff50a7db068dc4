// Networks that are cut and heal, and whether a node knows that it is alone.
#include <gtest/gtest.h>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

// Nodes that can be reached from the first one by following routing tables.
size_t component(VirtualNetwork& net) {
  std::map<dht::Id, size_t> index;
  for (size_t i = 0; i < net.size(); ++i)
    index[net.node(i).id()] = i;
  std::set<size_t> seen{0};
  std::vector<size_t> open{0};
  while (!open.empty()) {
    const dht::RoutingTable& table = net.node(open.back()).table();
    open.pop_back();
    for (const dht::Contact& contact : table.closest({}, table.size()))
      if (const size_t next = index.at(contact.id); seen.insert(next).second)
        open.push_back(next);
  }
  return seen.size();
}

// dht-and-transport §5.11.
TEST(SimIsolation, SixtyFourNodesStartedAtOnceFormOneComponent) {
  VirtualNetwork net(91, {milliseconds(1), milliseconds(2), 0.02, 0.01}, CipherKind::kHash);
  net.add({});
  for (size_t i = 1; i < 64; ++i)
    net.add({.seeds = {net.rng().below(i)}}); // many of whom know nobody yet themselves
  net.run_for(60 * kSecond);
  EXPECT_EQ(component(net), 64U);
}

// dht-and-transport §5.12: a node cut off for two minutes must see it, and must not go on as a
// zombie that answers from memory and stores nowhere.
TEST(SimIsolation, ANodeCutOffForTwoMinutesSeesItAndIsBackWithinOne) {
  VirtualNetwork net(92, {}, CipherKind::kHash);
  grow(net, 60, 30 * kSecond);
  const size_t cut = 17;
  net.store(3, record_of(net, 3, "changing", "old"));
  EXPECT_EQ(net.get(cut, named_key("changing")).records.size(), 1U);
  EXPECT_FALSE(net.node(cut).status().isolated);

  net.set_partition([&](size_t from, size_t to) { return from == cut || to == cut; });
  net.run_for(60 * kSecond);
  EXPECT_TRUE(net.node(cut).status().isolated);
  net.run_for(60 * kSecond);
  EXPECT_TRUE(net.node(cut).status().isolated);
  const dht::Record during = record_of(net, cut, "during", "value");
  EXPECT_EQ(net.store(cut, during).replicas, 0U);
  const dht::Record fresh = record_of(net, 3, "changing", "new");
  net.store(3, fresh);

  net.set_partition(nullptr);
  EXPECT_TRUE(
      net.run_until(net.now() + 60 * kSecond, [&] { return !net.node(cut).status().isolated; }));
  EXPECT_TRUE(holds(net.get(cut, fresh.key), fresh));
  const dht::Record after = record_of(net, cut, "after", "value");
  EXPECT_GE(net.store(cut, after).replicas, 8U);
  EXPECT_TRUE(holds(net.get(40, after.key), after));
}

TEST(SimIsolation, AnHonestNodeAmongTheDeadIsNotIsolatedForLong) {
  VirtualNetwork net(93, {}, CipherKind::kHash);
  grow(net, 60, 30 * kSecond);
  for (size_t i = 1; i < 60; i += 3)
    net.set_up(i, false);
  net.run_for(120 * kSecond);
  for (size_t i = 0; i < 60; ++i)
    if (net.is_up(i)) {
      EXPECT_FALSE(net.node(i).status().isolated) << i;
    }
}

TEST(SimIsolation, TwoHalvesOfFiveHundredNodesFindEachOtherWithinAMinute) {
  VirtualNetwork net(94, {}, CipherKind::kHash);
  for (size_t i = 0; i < 500; ++i)
    net.add({.seeds = i == 0 ? std::vector<size_t>{} : std::vector<size_t>{0, net.rng().below(i)}});
  net.settle();
  net.run_for(30 * kSecond);
  const auto half = [](size_t node) { return node % 2; };
  net.set_partition([&](size_t from, size_t to) { return half(from) != half(to); });
  net.run_for(120 * kSecond);
  std::vector<dht::Record> records; // stored by either half while it was alone
  for (size_t i = 0; i < 40; ++i) {
    records.push_back(record_of(net, 100 + i, "cut" + std::to_string(i), "value"));
    EXPECT_GE(net.store(100 + i, records.back()).replicas, 4U);
  }
  net.set_partition(nullptr);
  net.run_for(60 * kSecond);
  for (size_t i = 0; i < records.size(); ++i) {
    const size_t asker = 300 + 5 * i + (half(100 + i) == half(300 + 5 * i) ? 1 : 0); // of the other
    EXPECT_TRUE(holds(net.get(asker, records[i].key), records[i])) << i;
  }
}

// dht-and-transport §5.15: seeds are raced.
TEST(SimIsolation, DeadSeedsNeverDelayALiveOne) {
  VirtualNetwork net(95, Faults::constant_rtt(milliseconds(100)), CipherKind::kHash);
  grow(net, 20, 5 * kSecond);
  const auto joined_after = [&](std::vector<size_t> seeds) {
    const size_t joiner = net.add({.seeds = std::move(seeds)});
    const Time began = net.now();
    EXPECT_TRUE(net.run_until(began + 5 * kSecond, [&] { return net.node(joiner).ready(); }));
    return net.now() - began;
  };
  const Duration alone = joined_after({5});
  for (const size_t dead : {1U, 2U, 3U})
    net.set_up(dead, false);
  net.run_for(120 * kSecond); // the dead have left the tables: what is measured are the seeds
  EXPECT_LE(joined_after({1, 2, 3, 5}), alone + milliseconds(100));
}

} // namespace
} // namespace lah::sim
