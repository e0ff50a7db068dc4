// get_many and store_many: the same results in fewer packets.
#include <gtest/gtest.h>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

using dht::FindRequest;
using dht::GetResult;
using dht::Record;
using dht::Request;
using dht::StoreRequest;
using dht::StoreResult;

constexpr Faults kLossy{milliseconds(10), milliseconds(100), 0.10, 0.01};

std::vector<GetResult> get_many(VirtualNetwork& net, size_t index, const std::vector<dht::Id>& keys,
                                Duration limit = 30 * kSecond,
                                dht::Consistency consistency = dht::Consistency::kAll) {
  std::optional<std::vector<GetResult>> results;
  net.node(index).start_get_many(
      net.now(), net.wall(index), keys, net.now() + limit,
      [&](std::vector<GetResult> found) { results = std::move(found); }, consistency);
  net.collect(index);
  EXPECT_TRUE(net.run_until(net.now() + limit + kSecond, [&] { return results.has_value(); }));
  return results.value_or(std::vector<GetResult>{});
}

std::vector<StoreResult> store_many(VirtualNetwork& net, size_t index,
                                    const std::vector<Record>& records,
                                    Duration limit = 30 * kSecond) {
  std::optional<std::vector<StoreResult>> results;
  net.node(index).start_store_many(
      net.now(), net.wall(index), records, net.now() + limit,
      [&](std::vector<StoreResult> stored) { results = std::move(stored); });
  net.collect(index);
  EXPECT_TRUE(net.run_until(net.now() + limit + kSecond, [&] { return results.has_value(); }));
  return results.value_or(std::vector<StoreResult>{});
}

std::vector<Record> records_of(VirtualNetwork& net, size_t owner, size_t count) {
  std::vector<Record> records;
  for (size_t i = 0; i < count; ++i)
    records.push_back(record_of(net, owner, "r" + std::to_string(i), "v" + std::to_string(i)));
  return records;
}

std::vector<dht::Id> keys_of(const std::vector<Record>& records) {
  std::vector<dht::Id> keys;
  for (const Record& record : records)
    keys.push_back(record.key);
  return keys;
}

// dht-and-transport §5.7
TEST(DhtMany, ABatchEndsAsItsPartsWouldHave) {
  for (const uint64_t seed : {1U, 2U, 3U}) {
    VirtualNetwork net(seed, {}, CipherKind::kHash);
    grow(net, 60, 10 * kSecond);
    const std::vector<Record> records = records_of(net, 3, 100);
    for (size_t i = 0; i < records.size(); i += 2) // every other key is empty
      net.store(3, records[i]);
    const std::vector<GetResult> batch = get_many(net, 41, keys_of(records));
    ASSERT_EQ(batch.size(), records.size());
    for (size_t i = 0; i < records.size(); ++i) {
      const GetResult single = net.get(41, records[i].key);
      EXPECT_TRUE(batch[i].complete) << "seed " << seed;
      EXPECT_EQ(batch[i].records, single.records) << "seed " << seed << " key " << i;
      EXPECT_EQ(batch[i].records.size(), i % 2 == 0 ? 1U : 0U);
    }
  }
}

TEST(DhtMany, StoredTogetherIsFoundFromAnywhereDespiteLoss) {
  VirtualNetwork net(4, kLossy, CipherKind::kHash);
  grow(net, 80, 10 * kSecond);
  const std::vector<Record> records = records_of(net, 5, 300);
  for (const StoreResult& stored : store_many(net, 5, records)) {
    EXPECT_TRUE(stored.complete);
    EXPECT_GE(stored.replicas, 4U);
  }
  const std::vector<GetResult> found = get_many(net, 70, keys_of(records));
  for (size_t i = 0; i < records.size(); ++i)
    EXPECT_TRUE(holds(found[i], records[i])) << i;
}

TEST(DhtMany, SharesPackets) {
  const auto packets = [](bool together) {
    VirtualNetwork net(6, {}, CipherKind::kHash);
    grow(net, 60, 10 * kSecond);
    const std::vector<Record> records = records_of(net, 3, 200);
    const uint64_t before = net.node(3).status().packets_out;
    if (together)
      store_many(net, 3, records);
    else
      for (const Record& record : records)
        net.store(3, record);
    return net.node(3).status().packets_out - before;
  };
  const uint64_t together = packets(true);
  const uint64_t alone = packets(false);
  EXPECT_LT(together * 2, alone);
}

TEST(DhtMany, InFlightStaysBounded) {
  VirtualNetwork net(7, {}, CipherKind::kHash);
  grow(net, 100, 10 * kSecond);
  const std::vector<dht::Id> keys = keys_of(records_of(net, 3, 3000));
  size_t most = 0;
  uint64_t in = net.node(9).status().packets_in;
  const uint64_t out = net.node(9).status().packets_out;
  net.on_delivery = [&](const Endpoint&, size_t, ByteView) {
    const dht::NodeStatus status = net.node(9).status();
    most = std::max(
        most, static_cast<size_t>((status.packets_out - out) -
                                  std::min(status.packets_out - out, status.packets_in - in)));
  };
  const std::vector<GetResult> found = get_many(net, 9, keys);
  EXPECT_EQ(found.size(), keys.size());
  EXPECT_GT(most, Limits::kBatchRequests / 2);
  EXPECT_LE(most, 4 * Limits::kBatchRequests);
}

TEST(DhtMany, TheFirstReplicaIsEnoughWhereThatIsWanted) {
  VirtualNetwork net(12, {}, CipherKind::kHash);
  grow(net, 60, 10 * kSecond);
  const std::vector<Record> records = records_of(net, 3, 100);
  store_many(net, 3, records);
  const auto duration = [&](dht::Consistency consistency) {
    const Time began = net.now();
    const auto found = get_many(net, 50, keys_of(records), 30 * kSecond, consistency);
    for (size_t i = 0; i < records.size(); ++i)
      EXPECT_TRUE(found[i].complete && holds(found[i], records[i])) << i;
    return net.now() - began;
  };
  EXPECT_LT(duration(dht::Consistency::kFirst), duration(dht::Consistency::kAll));
}

TEST(DhtMany, RepeatedKeysAndNoneAtAll) {
  VirtualNetwork net(8, {}, CipherKind::kHash);
  grow(net, 12, 5 * kSecond);
  const Record record = record_of(net, 2, "a", "x");
  net.store(2, record);
  const std::vector<GetResult> found = get_many(net, 4, {record.key, named_key("b"), record.key});
  ASSERT_EQ(found.size(), 3U);
  EXPECT_TRUE(holds(found[0], record));
  EXPECT_TRUE(found[1].records.empty());
  EXPECT_TRUE(holds(found[2], record));
  EXPECT_TRUE(get_many(net, 4, {}).empty());
  EXPECT_TRUE(store_many(net, 4, {}).empty());
}

TEST(DhtMany, EachRecordOfABatchHasItsOwnVerdict) {
  VirtualNetwork net(9, {}, CipherKind::kHash);
  grow(net, 20, 5 * kSecond);
  const WallMs wall = net.wall(2);
  const Record newer = record_of(net, 2, "a", "new", 300'000, wall + 5);
  net.store(2, newer);
  Record forged = record_of(net, 2, "b", "x");
  forged.payload.push_back(std::byte{1});
  const std::vector<StoreResult> stored = store_many(
      net, 7, {record_of(net, 2, "a", "old", 300'000, wall), forged, record_of(net, 2, "c", "x")});
  ASSERT_EQ(stored.size(), 3U);
  EXPECT_EQ(stored[0].replicas, 0U);
  EXPECT_EQ(stored[0].newest_seq, newer.seq);
  EXPECT_EQ(stored[1].replicas, 0U);
  EXPECT_GE(stored[2].replicas, 4U);
}

TEST(DhtMany, ADeadlineEndsABatchWithWhatItHas) {
  VirtualNetwork net(10, {milliseconds(40), milliseconds(60)}, CipherKind::kHash);
  grow(net, 60, 10 * kSecond);
  const std::vector<Record> records = records_of(net, 3, 400);
  store_many(net, 3, records);
  const std::vector<GetResult> found = get_many(net, 50, keys_of(records), milliseconds(400));
  size_t complete = 0;
  for (size_t i = 0; i < found.size(); ++i)
    if (found[i].complete) {
      ++complete;
      EXPECT_TRUE(holds(found[i], records[i])) << i;
    }
  EXPECT_GT(complete, 0U);
  EXPECT_LT(complete, found.size());
}

TEST(DhtMany, ABatchOutlivesTheDeathOfItsPeers) {
  VirtualNetwork net(11, {}, CipherKind::kHash);
  grow(net, 50, 10 * kSecond);
  const std::vector<Record> records = records_of(net, 3, 100);
  store_many(net, 3, records);
  for (size_t dead = 10; dead < 20; ++dead)
    net.set_up(dead, false);
  const std::vector<GetResult> found = get_many(net, 40, keys_of(records));
  for (size_t i = 0; i < records.size(); ++i)
    EXPECT_TRUE(found[i].complete && holds(found[i], records[i])) << i;
}

TEST(DhtMany, MergesWhatFitsOneDatagram) {
  Request find = FindRequest{{named_key("a")}, true};
  EXPECT_FALSE(merge(find, FindRequest{{named_key("b")}, false}));
  for (size_t i = 1; i < Limits::kFindKeys; ++i)
    EXPECT_TRUE(merge(find, FindRequest{{named_key(std::to_string(i))}, true}));
  EXPECT_FALSE(merge(find, FindRequest{{named_key("one too many")}, true}));
  EXPECT_EQ(std::get<FindRequest>(find).keys.size(), Limits::kFindKeys);

  Record record;
  record.payload.resize(200);
  Request store = StoreRequest{{record}};
  EXPECT_FALSE(merge(store, find));
  EXPECT_TRUE(merge(store, StoreRequest{{record}}));
  while (merge(store, StoreRequest{{record}}))
    ;
  const dht::Header header{1, false, {}, dht::Token{}};
  EXPECT_LE(encode(header, store).size() + crypto::kPacketOverhead, Limits::kDatagramBytes);
  EXPECT_FALSE(merge(find, Request{dht::PingRequest{}}));
}

} // namespace
} // namespace lah::sim
