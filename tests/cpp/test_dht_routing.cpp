// Whom the routing table prefers, and how its upkeep finds them.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "dht/peer_memory.hpp"
#include "dht/table_upkeep.hpp"

namespace lah::dht {
namespace {

constexpr Duration kRtt = milliseconds(100);

Id random_id(Rng& rng) {
  return Id{{rng.u64(), rng.u64(), rng.u64(), rng.u64()}};
}

Contact random_contact(Rng& rng) {
  PublicKey key{};
  rng.fill(std::as_writable_bytes(std::span(key)));
  return Contact::make(key, {}, Endpoint::v4(static_cast<uint32_t>(rng.u64()) | 1U << 30, 1));
}

struct DhtRoutingTest : testing::Test {
  Contact contact(uint64_t first_word, uint32_t address = 0) {
    Contact made = random_contact(rng);
    made.id.words[0] = first_word;
    if (address != 0)
      made.endpoint = Endpoint::v4(address, 1);
    return made;
  }
  // 256 contacts of the first bucket, one for each slot.
  void fill_first_bucket(Duration rtt) {
    for (uint64_t slot = 0; slot < 256; ++slot)
      table.confirm(contact(kFar | slot << 55), rtt, 0);
    for (uint64_t i = 0; i < Limits::kBucket; ++i) // else it holds those closest to ourselves
      table.confirm(contact(i << 40), rtt, 0);
  }

  static constexpr uint64_t kFar = uint64_t{1} << 63; // our own id is 0
  SeededRng rng{1};
  RoutingTable table{Id{}};
};

TEST_F(DhtRoutingTest, TheNearerInTimeKeepsTheSlot) {
  fill_first_bucket(kRtt);
  const size_t size = table.size();
  const Contact nearer = contact(kFar | 7);
  EXPECT_FALSE(table.has_room(nearer));
  EXPECT_TRUE(table.wants(nearer));
  table.confirm(nearer, kRtt / 2, 1);
  EXPECT_TRUE(table.contains(nearer.id));
  EXPECT_EQ(table.size(), size);
  const Contact hardly = contact(kFar | 8);
  table.confirm(hardly, kRtt / 2 - kMillisecond, 1);
  EXPECT_FALSE(table.contains(hardly.id));
  const Contact untimed = contact(kFar | 9);
  table.confirm(untimed, std::nullopt, 1);
  EXPECT_FALSE(table.contains(untimed.id));
}

TEST_F(DhtRoutingTest, ASlotTriesSoManyAndThenIsContent) {
  fill_first_bucket(kRtt);
  for (int tried = 1; tried < RoutingTable::kChoices; ++tried) {
    const Contact next = contact(kFar | static_cast<uint64_t>(tried));
    EXPECT_TRUE(table.wants(next));
    table.confirm(next, kRtt, 1);
  }
  EXPECT_FALSE(table.wants(contact(kFar | 99)));
  EXPECT_TRUE(table.wants(contact(kFar | uint64_t{1} << 55 | 99)));
}

TEST_F(DhtRoutingTest, AnEmptySlotTakesFromTheMostCrowded) {
  for (uint64_t i = 0; i < Limits::kBucket; ++i)
    table.confirm(contact(i << 40), kRtt, 0);
  for (uint64_t slot = 0; slot < 255; ++slot) // none in the last slot, two in the first
    table.confirm(contact(kFar | slot << 55), kRtt, 0);
  const Contact slow = contact(kFar | 1);
  table.confirm(slow, 2 * kRtt, 0);
  const Contact newcomer = contact(~uint64_t{0});
  EXPECT_TRUE(table.has_room(newcomer));
  table.confirm(newcomer, 3 * kRtt, 1);
  EXPECT_TRUE(table.contains(newcomer.id));
  EXPECT_FALSE(table.contains(slow.id));
}

// Whatever order and times contacts come with: the k closest to ourselves are all there.
TEST_F(DhtRoutingTest, TheClosestToOurselvesAreNeverTraded) {
  for (int round = 0; round < 20; ++round) {
    const Id own = random_id(rng);
    RoutingTable crowded(own);
    std::vector<Contact> all;
    for (int i = 0; i < 3000; ++i) {
      all.push_back(random_contact(rng));
      crowded.confirm(all.back(), milliseconds(1 + static_cast<int64_t>(rng.below(300))), i);
    }
    EXPECT_LT(crowded.size(), 700U);
    std::sort(all.begin(), all.end(), [&](const Contact& a, const Contact& b) {
      return distance(a.id, own) < distance(b.id, own);
    });
    all.resize(Limits::kBucket);
    EXPECT_EQ(crowded.closest(own, Limits::kBucket), all);
  }
}

TEST_F(DhtRoutingTest, ClosestOfACrowdedTableIsWhatSortingItGives) {
  for (int round = 0; round < 50; ++round) {
    const Id own = random_id(rng);
    RoutingTable crowded(own, round % 2 == 0 ? TableSize::kDefault : TableSize::kLarge);
    std::vector<Contact> held;
    for (size_t i = 0; i < rng.below(2000); ++i)
      crowded.confirm(held.emplace_back(random_contact(rng)), kRtt, 0);
    std::erase_if(held, [&](const Contact& contact) { return !crowded.contains(contact.id); });
    EXPECT_EQ(held.size(), crowded.size());
    Id target = random_id(rng);
    if (round % 3 == 0)
      target = own;
    std::sort(held.begin(), held.end(), [&](const Contact& a, const Contact& b) {
      return distance(a.id, target) < distance(b.id, target);
    });
    for (const size_t count : {size_t{1}, size_t{17}, size_t{4096}}) {
      std::vector<Contact> truth = held;
      truth.resize(std::min(count, truth.size()));
      EXPECT_EQ(crowded.closest(target, count), truth);
    }
  }
}

TEST_F(DhtRoutingTest, OneHostOneContactAndFewOfASubnet) {
  table.confirm(contact(kFar, 0x08080801), kRtt, 0);
  EXPECT_FALSE(table.wants(contact(kFar | 1, 0x08080801)));
  table.confirm(contact(kFar | 2, 0x08080802), kRtt, 0);
  EXPECT_FALSE(table.wants(contact(kFar | 3, 0x08080803))); // two of a /24 in one bucket
  table.confirm(contact(kFar >> 1, 0x08080803), kRtt, 0);
  table.confirm(contact(kFar >> 1 | 1, 0x08080804), kRtt, 0);
  EXPECT_EQ(table.size(), 4U);
  table.confirm(contact(kFar >> 2, 0x08080805), kRtt, 0); // four in the table
  EXPECT_EQ(table.size(), 4U);
  EXPECT_TRUE(table.wants(contact(kFar | 4, 0x08080901)));
}

TEST_F(DhtRoutingTest, OfOneMachineOrClusterAllAreWelcome) {
  for (uint64_t i = 0; i < 100; ++i)
    table.confirm(contact(kFar | i << 55, i % 2 == 0 ? 0x7f000001 : 0x0a000001), kRtt, 0);
  EXPECT_EQ(table.size(), 100U);
}

TEST_F(DhtRoutingTest, AMovedContactCountsForItsNewSubnet) {
  Contact moving = contact(kFar, 0x08080801);
  table.confirm(moving, kRtt, 0);
  moving.endpoint = Endpoint::v4(0x09090901, 1);
  table.confirm(moving, kRtt, 0);
  EXPECT_EQ(table.size(), 1U);
  EXPECT_EQ(table.closest({}, 1).at(0).endpoint, moving.endpoint);
  EXPECT_TRUE(table.wants(contact(kFar | 1, 0x08080801)));
}

TEST_F(DhtRoutingTest, LargeTablesHoldMore) {
  RoutingTable large({}, TableSize::kLarge);
  for (int i = 0; i < 20000; ++i) {
    const Contact next = random_contact(rng);
    table.confirm(next, kRtt, 0);
    large.confirm(next, kRtt, 0);
  }
  EXPECT_GT(table.size(), 560U);
  EXPECT_LT(table.size(), 640U);
  EXPECT_GT(large.size(), 1550U);
}

// --- upkeep --------------------------------------------------------------------------------------

TEST_F(DhtRoutingTest, EveryContactIsConfirmedWithinAQuarterOfAnHour) {
  fill_first_bucket(kRtt);
  TableUpkeep upkeep(table);
  std::map<Id, Time> confirmed;
  size_t pings = 0;
  for (Time now = 0; now <= 3600 * kSecond; now += kSecond) {
    for (const Contact& ping : upkeep.plan(now, rng).pings) {
      table.confirm(ping, kRtt, now);
      confirmed[ping.id] = now;
      ++pings;
    }
    for (const auto& [id, at] : confirmed)
      ASSERT_LE(now - at, 900 * kSecond);
  }
  EXPECT_EQ(confirmed.size(), table.size());
  EXPECT_LE(pings, 3600U); // at most one a second
}

TEST_F(DhtRoutingTest, WhoFailedOnceIsAskedAgainSoon) {
  fill_first_bucket(kRtt);
  TableUpkeep upkeep(table);
  const Contact silent = table.closest({}, 1).at(0);
  upkeep.plan(0, rng);
  table.fail(silent);
  upkeep.ask_again(silent, 5 * kSecond);
  size_t asked = 0;
  for (Time now = kSecond; now <= 10 * kSecond; now += kSecond)
    for (const Contact& ping : upkeep.plan(now, rng).pings)
      asked += ping == silent;
  EXPECT_EQ(asked, 1U);
}

// A network too large to know: upkeep finds, for every slot, a contact that is near in time.
TEST_F(DhtRoutingTest, UpkeepFillsTheSlotsWithNearContacts) {
  std::map<Id, std::pair<Contact, Duration>> network;
  for (int i = 0; i < 20000; ++i) {
    const Contact member = random_contact(rng);
    network[member.id] = {member, milliseconds(1 + static_cast<int64_t>(rng.below(300)))};
  }
  const auto neighbours = [&](const Id& target) { // what a contact near the target would tell
    std::vector<Contact> result;
    auto at = network.lower_bound(target);
    for (int i = 0; i < 8 && at != network.begin(); ++i)
      --at;
    for (; at != network.end() && result.size() < 16; ++at)
      result.push_back(at->second.first);
    return result;
  };
  TableUpkeep upkeep(table);
  for (const Contact& first : neighbours({})) // the lookup of a node that joins
    table.confirm(first, network[first.id].second, 0);
  size_t most = 0;
  for (Time now = 0; now < 3600 * kSecond; now += kSecond) {
    const TableUpkeep::Plan plan = upkeep.plan(now, rng);
    most = std::max(most, plan.pings.size());
    for (const Contact& ping : plan.pings)
      table.confirm(ping, network[ping.id].second, now);
    if (plan.gap)
      for (const Contact& heard : neighbours(*plan.gap))
        upkeep.heard(heard);
  }
  EXPECT_LE(most, 6U);
  EXPECT_GT(table.size(), 500U);
  double sum = 0;
  for (const Contact& member : table.closest({}, table.size()))
    sum += static_cast<double>(network[member.id].second) / 1e6;
  EXPECT_LT(sum / static_cast<double>(table.size()), 110); // of 150 on average in the network
}

TEST_F(DhtRoutingTest, WhereNobodyIsLeftToFindUpkeepFallsSilent) {
  TableUpkeep upkeep(table);
  for (int i = 0; i < 20; ++i)
    table.confirm(random_contact(rng), kRtt, 0);
  size_t gaps = 0;
  for (Time now = 0; now < 3600 * kSecond; now += kSecond)
    gaps += upkeep.plan(now, rng).gap.has_value();
  EXPECT_LT(gaps, 20U);
}

TEST_F(DhtRoutingTest, CandidatesAreBoundedAndAskedOnce) {
  TableUpkeep upkeep(table);
  table.confirm(random_contact(rng), kRtt, 0);
  std::vector<Contact> strangers;
  for (int i = 0; i < 1000; ++i)
    upkeep.heard(strangers.emplace_back(random_contact(rng)));
  size_t asked = 0;
  for (Time now = 0; now < 300 * kSecond; now += kSecond) {
    asked += upkeep.plan(now, rng).pings.size();
    for (size_t i = 0; i < Limits::kTableCandidates; ++i)
      upkeep.heard(strangers[i]); // of whom none ever answers
  }
  EXPECT_LE(asked, Limits::kTableCandidates + 5); // and the one contact, each minute
}

// --- times ---------------------------------------------------------------------------------------

TEST_F(DhtRoutingTest, TimeoutsOfMembersStrangersAndPeersMetOnce) {
  PeerMemory memory(table);
  const Contact member = contact(kFar);
  const Contact stranger = contact(kFar | 1);
  EXPECT_EQ(memory.rto(stranger), kRtoInitial);
  for (int i = 0; i < 16; ++i)
    memory.answered(random_contact(rng), milliseconds(200), false);
  EXPECT_EQ(memory.rto(stranger), milliseconds(250));
  table.confirm(member, milliseconds(20), 0);
  EXPECT_TRUE(memory.has_met(member));
  EXPECT_EQ(memory.rto(member), milliseconds(60)); // RFC 6298 after one sample
  const Contact far = contact(kFar | 2);
  memory.answered(far, milliseconds(300), false);
  EXPECT_EQ(memory.rto(far), milliseconds(450)); // not 900
  memory.answered(far, std::nullopt, true);
  EXPECT_GT(memory.rto(far), milliseconds(900)); // its answer was late: back off
}

TEST_F(DhtRoutingTest, PeersMetAreForgottenInGenerations) {
  PeerMemory memory(table);
  const Contact first = random_contact(rng);
  memory.remember(first.key, Token{1});
  for (size_t i = 0; i + 1 < Limits::kPeerMemory; ++i)
    memory.remember(random_contact(rng).key, Token{2});
  EXPECT_LE(memory.size(), Limits::kPeerMemory);
  memory.turn(TokenIssuer::kRotation);
  memory.turn(2 * TokenIssuer::kRotation);
  EXPECT_EQ(memory.size(), 0U);
  EXPECT_EQ(memory.token(first.key), std::nullopt);
}

} // namespace
} // namespace lah::dht
