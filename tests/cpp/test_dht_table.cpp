// Routing table and timeouts: pure parts of Kademlia.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/rtt.hpp"
#include "dht/pending.hpp"
#include "dht/routing_table.hpp"

namespace lah::dht {
namespace {

constexpr Duration kRtt = milliseconds(100);

Id random_id(Rng& rng) {
  std::array<uint8_t, 32> bytes{};
  rng.fill(std::as_writable_bytes(std::span(bytes)));
  return Id::from_bytes(bytes);
}

Contact random_contact(Rng& rng) {
  PublicKey key{};
  rng.fill(std::as_writable_bytes(std::span(key)));
  return Contact::make(key, {}, Endpoint::v4(static_cast<uint32_t>(rng.u64()), 1));
}

Contact near(const Id& own, size_t prefix, Rng& rng) {
  Contact contact = random_contact(rng);
  contact.id = random_id(rng);
  for (size_t bit = 0; bit <= prefix; ++bit) {
    const uint64_t mask = uint64_t{1} << (63 - bit % 64);
    const bool set = ((own.words[bit / 64] & mask) != 0) != (bit == prefix);
    uint64_t& word = contact.id.words[bit / 64];
    word = set ? word | mask : word & ~mask;
  }
  return contact;
}

TEST(DhtRoutingTable, ClosestEqualsBruteForce) {
  SeededRng rng(1);
  for (int round = 0; round < 20; ++round) {
    RoutingTable table(random_id(rng));
    std::vector<Contact> all;
    for (int i = 0; i < 200; ++i) {
      all.push_back(random_contact(rng));
      table.confirm(all.back(), kRtt, i);
    }
    ASSERT_EQ(table.size(), all.size()); // the first buckets hold them all
    const Id target = random_id(rng);
    std::sort(all.begin(), all.end(), [&](const Contact& a, const Contact& b) {
      return distance(a.id, target) < distance(b.id, target);
    });
    all.resize(16);
    EXPECT_EQ(table.closest(target, 16), all);
  }
}

// One contact of each slot of this bucket.
std::vector<Contact> spread(const Id& own, size_t bucket, Rng& rng) {
  std::map<uint64_t, Contact> slots;
  while (slots.size() < Limits::kBucket) {
    const Contact contact = near(own, bucket, rng);
    slots.try_emplace(contact.id.words[0] << (bucket + 1) >> 60, contact);
  }
  std::vector<Contact> contacts;
  for (const auto& [slot, contact] : slots)
    contacts.push_back(contact);
  return contacts;
}

// Enough contacts closer to ourselves that a bucket of its own is nothing special.
void fill_deeper(RoutingTable& table, const Id& own, Rng& rng) {
  for (const Contact& contact : spread(own, 20, rng))
    table.confirm(contact, kRtt, 1);
}

TEST(DhtRoutingTable, FullBucketKeepsTheOldAndRemembersTheNew) {
  SeededRng rng(2);
  const Id own = random_id(rng);
  RoutingTable table(own);
  fill_deeper(table, own, rng);
  const std::vector<Contact> members = spread(own, 6, rng);
  for (const Contact& member : members) {
    EXPECT_TRUE(table.has_room(member));
    table.confirm(member, kRtt, 1);
  }
  const size_t size = table.size();
  const Contact spare = near(own, 6, rng);
  EXPECT_FALSE(table.has_room(spare));
  table.confirm(spare, kRtt, 2);
  EXPECT_FALSE(table.contains(spare.id));
  EXPECT_FALSE(table.fail(members[3]));
  EXPECT_TRUE(table.contains(members[3].id)); // one failure may be the path's
  EXPECT_TRUE(table.fail(members[3]));
  EXPECT_FALSE(table.contains(members[3].id));
  EXPECT_TRUE(table.contains(spare.id));
  EXPECT_EQ(table.size(), size);
}

TEST(DhtRoutingTable, AnAnswerForgivesAFailure) {
  SeededRng rng(3);
  RoutingTable table(random_id(rng));
  const Contact contact = random_contact(rng);
  table.confirm(contact, kRtt, 1);
  table.fail(contact);
  table.confirm(contact, kRtt, 2);
  table.fail(contact);
  EXPECT_TRUE(table.contains(contact.id));
  table.fail(contact);
  EXPECT_FALSE(table.contains(contact.id));
  EXPECT_EQ(table.size(), 0U);
}

TEST(DhtRoutingTable, NeverHoldsItself) {
  SeededRng rng(4);
  const Contact self = random_contact(rng);
  RoutingTable table(self.id);
  EXPECT_FALSE(table.wants(self));
  table.confirm(self, kRtt, 1);
  EXPECT_EQ(table.size(), 0U);
}

TEST(DhtRoutingTable, ProbesGoRoundAndPassOverTheFreshlyConfirmed) {
  SeededRng rng(5);
  RoutingTable table(random_id(rng));
  std::set<Id> stale;
  for (int i = 0; i < 30; ++i) {
    const Contact contact = random_contact(rng);
    table.confirm(contact, kRtt, milliseconds(100 + i));
    if (i < 10)
      stale.insert(contact.id);
  }
  for (int round = 0; round < 2; ++round) {
    std::set<Id> probed;
    for (int i = 0; i < 30; ++i)
      if (const auto due = table.next_probe(milliseconds(110))) {
        EXPECT_TRUE(probed.insert(due->id).second);
      }
    EXPECT_EQ(probed, stale);
  }
}

TEST(DhtRoutingTable, RefreshTargetsLieInTheirBucketsAndComeOnceAPeriod) {
  SeededRng rng(6);
  const Id own = random_id(rng);
  RoutingTable table(own);
  table.confirm(near(own, 4, rng), kRtt, 0);
  EXPECT_FALSE(table.refresh_target(0, 1000, rng)); // their first period begins
  std::vector<size_t> buckets;
  while (const auto target = table.refresh_target(1500, 2000, rng))
    buckets.push_back(common_prefix(own, *target));
  EXPECT_EQ(buckets, (std::vector<size_t>{0, 1, 2, 3, 4}));
  table.touch(near(own, 2, rng).id, 3000);
  size_t again = 0;
  while (table.refresh_target(2500, 2500, rng))
    ++again;
  EXPECT_EQ(again, 4U);
}

TEST(DhtRtt, FollowsRfc6298) {
  RttEstimator rtt;
  EXPECT_EQ(rtt.rto(), kRtoInitial);
  rtt.sample(milliseconds(100));
  EXPECT_EQ(rtt.rto(), milliseconds(300)); // SRTT + 4 * SRTT / 2
  for (int i = 0; i < 100; ++i)
    rtt.sample(milliseconds(100));
  EXPECT_NEAR(static_cast<double>(rtt.rto()), 100e6, 1e6);
  rtt.back_off();
  EXPECT_NEAR(static_cast<double>(rtt.rto()), 200e6, 2e6);
  for (int i = 0; i < 10; ++i)
    rtt.back_off();
  EXPECT_EQ(rtt.rto(), kRtoMax);
  rtt.sample(milliseconds(100));
  EXPECT_LT(rtt.rto(), milliseconds(110));
}

TEST(DhtRtt, StrangersGetTheNinetiethPercentile) {
  NetworkRtt network;
  EXPECT_EQ(network.rto(), kRtoInitial);
  for (size_t i = 1; i < NetworkRtt::kSamplesMin; ++i)
    network.sample(milliseconds(10));
  EXPECT_EQ(network.rto(), kRtoInitial); // the nearest answer first
  network = {};
  for (int i = 1; i <= 64; ++i)
    network.sample(milliseconds(i * 10));
  EXPECT_EQ(network.rto(), milliseconds(580) * 5 / 4);
}

TEST(DhtPending, OverdueLapsedFailedAndOnlyTheRightPeerAnswers) {
  SeededRng rng(12);
  PendingRequests pending;
  const Contact peer = random_contact(rng);
  pending.add({7, 1, peer, MessageKind::kFind, Buffer(10), 0}, milliseconds(100), 0);
  EXPECT_EQ(pending.next_deadline(), milliseconds(100));

  Endpoint elsewhere = peer.endpoint;
  ++elsewhere.port;
  EXPECT_FALSE(pending.take(8, peer.key, peer.endpoint, MessageKind::kFind));
  EXPECT_FALSE(pending.take(7, PublicKey{}, peer.endpoint, MessageKind::kFind));
  EXPECT_FALSE(pending.take(7, peer.key, elsewhere, MessageKind::kFind));
  EXPECT_FALSE(pending.take(7, peer.key, peer.endpoint, MessageKind::kPing));

  EXPECT_EQ(pending.due(milliseconds(99)).overdue.size(), 0U);
  EXPECT_EQ(pending.due(milliseconds(100)).overdue.size(), 1U); // once: one retransmission
  EXPECT_EQ(pending.next_deadline(), milliseconds(150));
  const PendingRequests::Due lapsed = pending.due(milliseconds(150));
  EXPECT_EQ(lapsed.overdue.size(), 0U);
  EXPECT_EQ(lapsed.lapsed.size(), 1U);
  EXPECT_EQ(pending.due(milliseconds(399)).failed.size(), 0U);
  EXPECT_EQ(pending.next_deadline(), milliseconds(400));
  const auto late = pending.take(7, peer.key, peer.endpoint, MessageKind::kFind);
  ASSERT_TRUE(late);
  EXPECT_TRUE(late->retransmitted());
  EXPECT_EQ(pending.next_deadline(), kNever);

  pending.add({9, 1, peer, MessageKind::kPing, Buffer(10), 0}, milliseconds(100), 0);
  pending.due(milliseconds(100));
  pending.due(milliseconds(150));
  EXPECT_EQ(pending.due(milliseconds(400)).failed.size(), 1U);
  EXPECT_EQ(pending.size(), 0U);

  pending.add({10, 1, peer, MessageKind::kFind, Buffer(10), 0}, milliseconds(20),
              milliseconds(290));
  EXPECT_EQ(pending.due(milliseconds(20)).overdue.size(), 1U);
  EXPECT_EQ(pending.next_deadline(), milliseconds(290)); // no less patience than with a stranger
  EXPECT_EQ(pending.due(milliseconds(290)).lapsed.size(), 1U);
  EXPECT_EQ(pending.next_deadline(), milliseconds(310)); // time to answer a third transmission
}

} // namespace
} // namespace lah::dht
