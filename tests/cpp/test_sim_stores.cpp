// Where records end up when packets are lost and replicas are slow.
#include <gtest/gtest.h>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

// A swarm in which the node closest to a key does not answer at first.
struct SlowReplica : testing::Test {
  SlowReplica() {
    grow(net, 40, 20 * kSecond);
    net.set_frozen(slow = closest(), true);
  }

  size_t closest() const {
    size_t best = 1; // 0 is the one who asks
    for (size_t i = 2; i < net.size(); ++i)
      if (dht::distance(net.node(i).id(), key) < dht::distance(net.node(best).id(), key))
        best = i;
    return best;
  }

  bool held_by_slow() const { return !net.node(slow).storage().get(key, net.wall(slow)).empty(); }

  // The caller was told, and the slow one wakes up then.
  void expect_late_copy(const dht::StoreResult& told) {
    EXPECT_TRUE(told.complete);
    EXPECT_EQ(told.replicas, Limits::kReplicas); // of those that answered
    EXPECT_EQ(net.node(0).status().operations, 0U);
    EXPECT_FALSE(held_by_slow());
    net.set_frozen(slow, false);
    net.run_for(kSecond);
    EXPECT_TRUE(held_by_slow());
  }

  VirtualNetwork net{91, {}, CipherKind::kHash};
  const dht::Id key = named_key("late");
  size_t slow = 0;
};

TEST_F(SlowReplica, GetsTheRecordWhenItAnswersAfterAll) {
  const Time began = net.now();
  const dht::StoreResult told = net.store(0, record_of(net, 0, "late", "value"));
  EXPECT_LT(net.now() - began, kSecond);
  expect_late_copy(told);
}

TEST_F(SlowReplica, GetsARecordOfABatchToo) {
  std::vector<dht::Record> records;
  for (const std::string name : {"late", "other", "third"})
    records.push_back(record_of(net, 0, name, "value"));
  std::vector<dht::StoreResult> told;
  net.node(0).start_store_many(net.now(), net.network_wall(0), std::move(records),
                               net.now() + 30 * kSecond,
                               [&](std::vector<dht::StoreResult> results) { told = results; });
  net.collect(0);
  ASSERT_TRUE(net.run_until(net.now() + 2 * kSecond, [&] { return told.size() == 3; }));
  expect_late_copy(told[0]);
}

TEST_F(SlowReplica, IsForgottenOnceItFailed) {
  net.store(0, record_of(net, 0, "late", "value"));
  net.run_for(10 * kSecond);
  const uint64_t failed = net.node(0).status().requests_failed;
  EXPECT_GE(failed, 1U);
  net.set_frozen(slow, false);
  net.run_for(kSecond);
  EXPECT_FALSE(held_by_slow());
}

// Of three transmissions one arrives, as a rule: what is stored is where it is looked for.
TEST(SimStores, ReachTheClosestAtTenPercentLoss) {
  VirtualNetwork net(92, {.loss = 0.1}, CipherKind::kHash);
  grow(net, 40, 20 * kSecond);
  size_t held = 0;
  constexpr size_t kStores = 60;
  for (size_t i = 0; i < kStores; ++i) {
    const dht::Record record = record_of(net, i % 40, std::to_string(i), "value");
    net.store(i % 40, record);
    net.run_for(2 * kSecond);
    std::vector<std::pair<dht::Id, size_t>> order;
    for (size_t node = 0; node < net.size(); ++node)
      order.emplace_back(dht::distance(net.node(node).id(), record.key), node);
    std::sort(order.begin(), order.end());
    for (size_t rank = 0; rank < Limits::kReplicas; ++rank) {
      const size_t node = order[rank].second;
      held += !net.node(node).storage().get(record.key, net.wall(node)).empty();
    }
  }
  EXPECT_GE(static_cast<double>(held), 0.98 * kStores * Limits::kReplicas);
}

} // namespace
} // namespace lah::sim
