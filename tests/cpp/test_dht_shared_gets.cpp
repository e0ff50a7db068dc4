// Gets that share a lookup, and gets that are content with what an earlier one found.
#include <gtest/gtest.h>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

using dht::Consistency;
using dht::GetResult;
using dht::Record;

constexpr Faults kSteady{milliseconds(50), milliseconds(50)};

class DhtSharedGets : public testing::Test {
protected:
  DhtSharedGets() {
    grow(net_, 40, 10 * kSecond);
    record_ = record_of(net_, 3, "a", "old");
    net_.store(3, record_);
  }

  struct Told {
    Time at = 0;
    std::optional<GetResult> result;
  };

  void start(Told& told, const dht::Id& key, Duration limit, Duration max_age = 0,
             Consistency consistency = Consistency::kAll) {
    net_.node(kAsker).start_get(
        net_.now(), net_.wall(kAsker), key, net_.now() + limit,
        [&](GetResult result) {
          told = {net_.now(), std::move(result)};
        },
        consistency, max_age);
    net_.collect(kAsker);
  }
  // Runs until the get ends; the time it took, which is none if nobody was asked.
  Duration run(Told& told, const dht::Id& key, Duration max_age,
               Consistency consistency = Consistency::kAll) {
    const Time began = net_.now();
    told = {};
    start(told, key, 30 * kSecond, max_age, consistency);
    EXPECT_TRUE(net_.run_until(net_.now() + 31 * kSecond, [&] { return told.result.has_value(); }));
    return told.at - began;
  }

  static constexpr size_t kAsker = 30;
  VirtualNetwork net_{1, kSteady, CipherKind::kHash};
  Record record_;
};

TEST_F(DhtSharedGets, OneLookupForAllWhoAskAtOnce) {
  const auto packets = [&](size_t callers, std::vector<Told>& told) {
    const uint64_t before = net_.node(kAsker).status().packets_out;
    told.resize(callers);
    for (Told& one : told)
      start(one, record_.key, 10 * kSecond);
    net_.run_for(2 * kSecond);
    return net_.node(kAsker).status().packets_out - before;
  };
  std::vector<Told> told;
  const uint64_t alone = packets(1, told);
  EXPECT_LT(packets(20, told), 3 * alone + 10); // with the upkeep of two seconds
  for (const Told& one : told)
    EXPECT_TRUE(one.result && one.result->complete && holds(*one.result, record_));
}

TEST_F(DhtSharedGets, EachCallerKeepsItsDeadline) {
  for (const bool hasty_first : {true, false}) {
    Told hasty;
    Told patient;
    const Time began = net_.now();
    if (hasty_first)
      start(hasty, record_.key, milliseconds(60));
    start(patient, record_.key, 10 * kSecond);
    if (!hasty_first)
      start(hasty, record_.key, milliseconds(60));
    net_.run_for(5 * kSecond);
    ASSERT_TRUE(hasty.result && patient.result);
    EXPECT_EQ(hasty.at, began + milliseconds(60)); // no answer can have come by then
    EXPECT_FALSE(hasty.result->complete);
    EXPECT_TRUE(patient.result->complete && holds(*patient.result, record_));
    EXPECT_EQ(net_.node(kAsker).status().operations, 0U);
  }
}

TEST_F(DhtSharedGets, NobodyWaitingEndsTheLookup) {
  std::array<Told, 2> told;
  start(told[0], record_.key, milliseconds(60));
  start(told[1], record_.key, milliseconds(80));
  net_.run_for(milliseconds(81));
  for (const Told& one : told)
    EXPECT_TRUE(one.result && !one.result->complete);
  EXPECT_EQ(net_.node(kAsker).status().operations, 0U);
}

TEST_F(DhtSharedGets, AfterOnesOwnStoreOneFindsIt) {
  Told before;
  Told after;
  start(before, named_key("mine"), 10 * kSecond);
  const Record mine = record_of(net_, kAsker, "mine", "x");
  net_.node(kAsker).start_store(net_.now(), net_.wall(kAsker), mine, net_.now() + 10 * kSecond,
                                [](const dht::StoreResult&) {});
  start(after, named_key("mine"), 10 * kSecond);
  net_.run_for(5 * kSecond);
  ASSERT_TRUE(after.result);
  EXPECT_TRUE(holds(*after.result, mine));
}

TEST_F(DhtSharedGets, AgedResultsCostNothing) {
  Told told;
  EXPECT_GT(run(told, record_.key, 30 * kSecond), 0);
  EXPECT_EQ(run(told, record_.key, 30 * kSecond), 0);
  EXPECT_TRUE(told.result->complete && holds(*told.result, record_));
  EXPECT_EQ(run(told, record_.key, 30 * kSecond, Consistency::kFirst), 0);
  EXPECT_GT(run(told, record_.key, 0), 0); // who allows no age gets none

  const Record fresh = record_of(net_, 3, "a", "new");
  net_.store(3, fresh);
  run(told, record_.key, 30 * kSecond);
  EXPECT_TRUE(holds(*told.result, record_)); // that is what an age means
  net_.run_for(20 * kSecond);
  EXPECT_GT(run(told, record_.key, 10 * kSecond), 0);
  EXPECT_TRUE(holds(*told.result, fresh));
}

TEST_F(DhtSharedGets, AWeakerResultDoesNotServeAStrongerGet) {
  Told told;
  run(told, record_.key, kSecond, Consistency::kFirst);
  EXPECT_EQ(run(told, record_.key, kSecond, Consistency::kFirst), 0);
  EXPECT_GT(run(told, record_.key, kSecond, Consistency::kAll), 0);
}

TEST_F(DhtSharedGets, EmptyKeysAreAskedForAgainSoon) {
  Told told;
  const dht::Id key = named_key("nothing yet");
  EXPECT_GT(run(told, key, 60 * kSecond), 0);
  EXPECT_EQ(run(told, key, 60 * kSecond), 0);
  const Record late = record_of(net_, 5, "nothing yet", "x");
  net_.store(5, late);
  net_.run_for(dht::GetCache::kAbsentAge);
  EXPECT_GT(run(told, key, 60 * kSecond), 0);
  EXPECT_TRUE(holds(*told.result, late));
}

TEST_F(DhtSharedGets, OnesOwnStoreAndTheExpiryEndAnAge) {
  Told told;
  const dht::Id key = named_key("mine");
  run(told, key, 60 * kSecond);
  const Record mine = record_of(net_, kAsker, "mine", "x", 10'000);
  net_.store(kAsker, mine);
  run(told, key, 60 * kSecond);
  EXPECT_TRUE(holds(*told.result, mine));
  net_.run_for(10 * kSecond);
  EXPECT_GT(run(told, key, 60 * kSecond), 0);
  EXPECT_TRUE(told.result->records.empty());
}

TEST(DhtGetCache, IsBoundedByRecords) {
  dht::GetCache cache;
  GetResult result;
  result.complete = true;
  result.records.resize(100);
  for (dht::Record& record : result.records)
    record.expiry_ms = 1000;
  for (size_t i = 0; i < 300; ++i)
    cache.keep(named_key(std::to_string(i)), Consistency::kAll, 0, result);
  EXPECT_LE(cache.records(), Limits::kCachedRecords);
  EXPECT_FALSE(cache.find(named_key("0"), Consistency::kAll, 0, 1, kSecond));
  EXPECT_TRUE(cache.find(named_key("299"), Consistency::kAll, 0, 1, kSecond));
  result.complete = false;
  cache.keep(named_key("partial"), Consistency::kAll, 0, result);
  EXPECT_FALSE(cache.find(named_key("partial"), Consistency::kAll, 0, 1, kSecond));
}

} // namespace
} // namespace lah::sim
