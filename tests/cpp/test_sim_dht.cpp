// Whole networks of nodes in virtual time.
#include <gtest/gtest.h>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

constexpr Faults kLossy{milliseconds(10), milliseconds(100), 0.10, 0.01};

std::string run_and_hash(uint64_t seed, CipherKind cipher) {
  VirtualNetwork net(seed, kLossy, cipher);
  grow(net, 12, 5 * kSecond);
  net.store(3, record_of(net, 3, "a", "x"));
  net.get(7, named_key("a"));
  return net.log_hash();
}

TEST(SimDht, SameSeedSameEventsDifferentSeedOthers) {
  for (const CipherKind cipher : {CipherKind::kSealed, CipherKind::kHash}) {
    EXPECT_EQ(run_and_hash(1, cipher), run_and_hash(1, cipher));
    EXPECT_NE(run_and_hash(1, cipher), run_and_hash(2, cipher));
  }
}

TEST(SimDht, BothCiphersMakePacketsOfTheSameSize) {
  std::array<std::vector<size_t>, 2> sizes;
  for (const CipherKind cipher : {CipherKind::kSealed, CipherKind::kHash}) {
    VirtualNetwork net(5, {}, cipher);
    net.on_delivery = [&](const Endpoint&, size_t, ByteView bytes) {
      sizes[static_cast<size_t>(cipher)].push_back(bytes.size());
    };
    net.add({});
    net.add({.seeds = {0}});
    net.run_for(kSecond);
    std::sort(sizes[static_cast<size_t>(cipher)].begin(), sizes[static_cast<size_t>(cipher)].end());
  }
  EXPECT_FALSE(sizes[0].empty());
  EXPECT_EQ(sizes[0], sizes[1]);
}

// dht-and-transport §1.1, §5.11: one component, and records found from everywhere.
TEST(SimDht, EveryRecordIsFoundFromAnywhereAtTenPercentLoss) {
  VirtualNetwork net(11, kLossy, CipherKind::kHash);
  grow(net, 150);
  std::vector<dht::Record> records;
  for (size_t i = 0; i < 60; ++i) {
    const size_t owner = net.rng().below(net.size());
    records.push_back(record_of(net, owner, "r" + std::to_string(i), "value"));
    EXPECT_GE(net.store(owner, records.back()).replicas, 4U);
  }
  for (const dht::Record& record : records) {
    const dht::GetResult result = net.get(net.rng().below(net.size()), record.key);
    EXPECT_TRUE(result.complete);
    EXPECT_TRUE(holds(result, record));
  }
}

TEST(SimDht, RecordsAreFoundWithAFifthOfTheNodesDead) {
  VirtualNetwork net(12, kLossy, CipherKind::kHash);
  grow(net, 120);
  std::vector<dht::Record> records;
  for (size_t i = 0; i < 100; ++i) {
    const size_t owner = 1 + net.rng().below(net.size() - 1);
    records.push_back(record_of(net, owner, "r" + std::to_string(i), "value"));
    net.store(owner, records.back());
  }
  for (size_t i = 0; i < net.size() / 5; ++i)
    net.set_up(1 + net.rng().below(net.size() - 1), false);
  size_t found = 0;
  size_t asked = 0;
  for (const dht::Record& record : records) {
    size_t asker = net.rng().below(net.size());
    while (!net.is_up(asker))
      asker = net.rng().below(net.size());
    const Time began = net.now();
    found += holds(net.get(asker, record.key), record);
    EXPECT_LT(net.now() - began, 10 * kSecond); // soft timeouts, not fixed ones
    ++asked;
  }
  EXPECT_GE(found * 100, asked * 99);
}

TEST(SimDht, SealedPacketsCarryANetworkToo) {
  VirtualNetwork net(13, kLossy, CipherKind::kSealed);
  grow(net, 30, 10 * kSecond);
  const dht::Record record = record_of(net, 4, "a", "value");
  EXPECT_GE(net.store(4, record).replicas, 4U);
  for (const size_t asker : {0U, 9U, 17U, 29U})
    EXPECT_TRUE(holds(net.get(asker, record.key), record));
}

TEST(SimDht, NothingIsServedPastItsExpiry) {
  VirtualNetwork net(14, {}, CipherKind::kHash);
  grow(net, 20, 5 * kSecond);
  const dht::Record record = record_of(net, 2, "a", "value", 10'000);
  net.store(2, record);
  const WallMs before = record.expiry_ms - 1000;
  net.run_for(milliseconds(static_cast<int64_t>(before - net.wall(2))));
  EXPECT_TRUE(holds(net.get(9, record.key), record));
  net.run_for(kSecond);
  for (size_t asker = 0; asker < net.size(); ++asker)
    EXPECT_TRUE(net.get(asker, record.key).records.empty());
}

TEST(SimDht, ReplayedOlderAndForgedRecordsAreRefused) {
  VirtualNetwork net(15, {}, CipherKind::kHash);
  grow(net, 20, 5 * kSecond);
  const dht::Record old = record_of(net, 2, "a", "old");
  net.store(2, old);
  net.run_for(kSecond);
  const dht::Record fresh = record_of(net, 2, "a", "new");
  net.store(2, fresh);

  size_t other = 0; // not one of the replicas: it would ask one node that is none in its own place
  while (!net.node(other).storage().get(fresh.key, net.wall(other)).empty())
    ++other;
  EXPECT_EQ(net.store(other, old).replicas, 0U); // a replay by somebody else
  EXPECT_EQ(net.store(other, old).newest_seq, fresh.seq);
  dht::Record forged = fresh;
  forged.seq += 1;
  EXPECT_EQ(net.store(other, forged).replicas, 0U); // not signed by the owner
  const dht::GetResult result = net.get(11, fresh.key);
  EXPECT_EQ(result.records, std::vector{fresh});
}

TEST(SimDht, TombstoneHidesARecordUntilItExpires) {
  VirtualNetwork net(16, {}, CipherKind::kHash);
  grow(net, 20, 5 * kSecond);
  const dht::Record record = record_of(net, 2, "a", "value");
  net.store(2, record);
  net.run_for(kSecond);
  net.store(2, record_of(net, 2, "a", ""));
  const dht::GetResult result = net.get(5, record.key);
  ASSERT_EQ(result.records.size(), 1U);
  EXPECT_TRUE(result.records[0].is_tombstone());
  EXPECT_EQ(net.store(2, record).replicas, 0U);
}

TEST(SimDht, ManyOwnersUnderOneKeyArePaged) {
  VirtualNetwork net(17, kLossy, CipherKind::kHash);
  grow(net, 40, 10 * kSecond);
  const std::string text(600, 'x'); // one record fills more than half a packet
  for (size_t owner = 0; owner < net.size(); ++owner)
    net.store(owner, record_of(net, owner, "shared", text));
  EXPECT_EQ(net.get(3, named_key("shared")).records.size(), net.size());
}

// learning-at-home §6A-23: a lone node could not store.
TEST(SimDht, ALoneNodeStoresAndFinds) {
  VirtualNetwork net(18, {}, CipherKind::kSealed);
  net.add({});
  const dht::Record record = record_of(net, 0, "a", "value");
  const dht::StoreResult stored = net.store(0, record);
  EXPECT_TRUE(stored.complete);
  EXPECT_EQ(stored.replicas, 0U); // besides its own copy
  EXPECT_TRUE(holds(net.get(0, record.key), record));
}

TEST(SimDht, DeadSeedsDelayNobody) {
  VirtualNetwork net(19, {}, CipherKind::kSealed);
  for (int i = 0; i < 4; ++i)
    net.add({});
  for (const size_t dead : {0U, 1U, 2U})
    net.set_up(dead, false);
  const size_t joiner = net.add({.seeds = {0, 1, 2, 3}});
  EXPECT_TRUE(net.run_until(net.now() + kSecond, [&] { return net.node(joiner).ready(); }));
}

TEST(SimDht, WithoutAnySeedANodeWorksAloneAndJoinsWhenOneComes) {
  VirtualNetwork net(20, {}, CipherKind::kSealed);
  net.add({});
  net.set_up(0, false);
  const size_t joiner = net.add({.seeds = {0}});
  const dht::Record record = record_of(net, joiner, "a", "value");
  const Time began = net.now();
  net.store(joiner, record);
  EXPECT_LT(net.now() - began, 3 * kSecond); // waits for the first attempt, no longer
  EXPECT_TRUE(holds(net.get(joiner, record.key), record));
  EXPECT_TRUE(net.node(joiner).status().isolated);
  net.run_for(60 * kSecond);
  net.set_up(0, true);
  EXPECT_TRUE(net.run_until(net.now() + 80 * kSecond, [&] { return net.node(joiner).ready(); }));
  EXPECT_FALSE(net.node(joiner).status().isolated);
}

// dht-and-transport §5.12.
TEST(SimDht, ACutNetworkHealsWithinAMinute) {
  VirtualNetwork net(21, {}, CipherKind::kHash);
  grow(net, 40, 10 * kSecond);
  net.set_partition([](size_t from, size_t to) { return (from < 5) != (to < 5); });
  net.run_for(180 * kSecond);
  net.set_partition(nullptr);
  net.run_for(60 * kSecond);
  const dht::Record record = record_of(net, 2, "after", "value");
  net.store(2, record);
  for (const size_t asker : {0U, 4U, 8U, 20U, 39U})
    EXPECT_TRUE(holds(net.get(asker, record.key), record)) << asker;
}

// dht-and-transport §5.6: a clock five minutes off is no reason to be refused.
TEST(SimDht, NodesWithWrongClocksJoinAndStore) {
  VirtualNetwork net(22, {}, CipherKind::kHash);
  grow(net, 10, 5 * kSecond);
  const size_t early = net.add({.seeds = {0}, .clock_skew_ms = -240'000});
  const size_t late = net.add({.seeds = {0}, .clock_skew_ms = 240'000});
  net.run_for(5 * kSecond);
  for (const size_t owner : {early, late}) {
    EXPECT_TRUE(net.node(owner).ready());
    const dht::Record record = record_of(net, owner, "skewed" + std::to_string(owner), "value");
    net.store(owner, record);
    EXPECT_TRUE(holds(net.get(3, record.key), record));
  }
}

TEST(SimDht, ClientsEnterNoTable) {
  VirtualNetwork net(23, {}, CipherKind::kHash);
  grow(net, 10, 5 * kSecond);
  const size_t client = net.add({.seeds = {0}, .client_mode = true});
  net.run_for(5 * kSecond);
  const dht::Record record = record_of(net, client, "c", "value");
  EXPECT_GE(net.store(client, record).replicas, 8U);
  EXPECT_TRUE(holds(net.get(4, record.key), record));
  for (size_t i = 0; i < 10; ++i)
    EXPECT_FALSE(net.node(i).table().contains(net.node(client).id()));
}

TEST(SimDht, NetworksOfDifferentNamesDoNotMix) {
  VirtualNetwork net(24, {}, CipherKind::kSealed);
  net.add({});
  net.add({.seeds = {0}, .network_id = "other"});
  net.run_for(30 * kSecond);
  EXPECT_EQ(net.node(0).table().size(), 0U);
  EXPECT_EQ(net.node(1).table().size(), 0U);
  EXPECT_FALSE(net.node(1).ready());
  EXPECT_GT(net.node(1).status().bad_packets, 0U);
}

TEST(SimDht, ARestartedNodeIsKnownAgain) {
  VirtualNetwork net(25, {}, CipherKind::kHash);
  grow(net, 10, 5 * kSecond);
  net.restart(4);
  net.run_for(5 * kSecond);
  EXPECT_TRUE(net.node(4).ready());
  const dht::Record record = record_of(net, 4, "again", "value");
  net.store(4, record);
  EXPECT_TRUE(holds(net.get(7, record.key), record));
}

TEST(SimDht, DeadContactsLeaveTheTables) {
  VirtualNetwork net(26, {}, CipherKind::kHash);
  grow(net, 20, 5 * kSecond);
  net.set_up(7, false);
  net.run_for(180 * kSecond);
  for (size_t i = 0; i < net.size(); ++i)
    if (i != 7) {
      EXPECT_FALSE(net.node(i).table().contains(net.node(7).id())) << i;
    }
}

TEST(SimDht, AnIdleNodeIsQuiet) {
  VirtualNetwork net(27, {}, CipherKind::kHash);
  grow(net, 50, 60 * kSecond);
  const uint64_t before = net.node(9).status().bytes_out;
  net.run_for(300 * kSecond);
  EXPECT_LT(net.node(9).status().bytes_out - before, 300U * 2048U);
}

} // namespace
} // namespace lah::sim
