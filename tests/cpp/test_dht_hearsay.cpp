// What a lookup makes of the contacts that strangers name: few may be real, and many one party's.
#include <gtest/gtest.h>

#include <algorithm>

#include "dht/lookup.hpp"

namespace lah::dht {
namespace {

const Id kTarget{{0, 0, 0, 0}};

// The id is the distance to kTarget; `subnet` a /24.
Contact contact(uint64_t away, uint32_t subnet) {
  Contact made;
  made.id = Id{{away, 0, 0, 0}};
  made.endpoint = Endpoint::v4(0x50000000U + (subnet << 8) + static_cast<uint32_t>(away % 250), 1);
  return made;
}

struct DhtHearsay : testing::Test {
  // Who is asked, one after the other; those of ids below `silent_below` fail.
  std::vector<uint64_t> ask_all(uint64_t silent_below = 0) {
    std::vector<uint64_t> asked;
    while (const auto next = lookup.next()) {
      asked.push_back(next->id.words[0]);
      if (next->id.words[0] < silent_below)
        lookup.failed(next->id);
      else
        lookup.answered(next->id, {});
    }
    return asked;
  }

  Lookup lookup{kTarget, Id{{1, 1, 1, 1}}, Lookup::Patience::kImpatient};
};

TEST_F(DhtHearsay, OfOneSubnetTheClosestTwoCountAndTheOthersComeLast) {
  for (uint64_t away = 101; away <= 112; ++away)
    lookup.add(contact(away, static_cast<uint32_t>(away)));
  for (const uint64_t away : {9U, 3U, 7U, 1U, 5U}) // closer than all others
    lookup.add(contact(away, 0));
  EXPECT_EQ(ask_all(), (std::vector<uint64_t>{1, 3, 101, 102, 103, 104, 105, 106}));
  EXPECT_TRUE(lookup.finished());
  EXPECT_EQ(lookup.closest().size(), Limits::kReplicas);
  EXPECT_EQ(lookup.rank(Id{{101, 0, 0, 0}}), Limits::kResultsPerSubnet);
}

TEST_F(DhtHearsay, ASwarmOfOneSubnetStillHasItsReplicas) {
  for (uint64_t away = 1; away <= 12; ++away)
    lookup.add(contact(away, 0));
  EXPECT_EQ(ask_all(), (std::vector<uint64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_TRUE(lookup.finished());
}

TEST_F(DhtHearsay, LocalAddressesAreNoCrowd) {
  for (uint64_t away = 1; away <= 12; ++away) {
    Contact local = contact(away, 0);
    local.endpoint = Endpoint::v4(0x0a000001U, static_cast<uint16_t>(away));
    lookup.add(local);
    lookup.add(contact(100 + away, static_cast<uint32_t>(away)));
  }
  EXPECT_EQ(ask_all().back(), 8U);
}

TEST_F(DhtHearsay, WhoFailedLeavesItsPlaceToTheNextOfItsSubnet) {
  for (uint64_t away = 1; away <= 4; ++away)
    lookup.add(contact(away, 0));
  for (uint64_t away = 101; away <= 112; ++away)
    lookup.add(contact(away, static_cast<uint32_t>(away)));
  const std::vector<uint64_t> asked = ask_all(3);
  for (const uint64_t away : {3U, 4U})
    EXPECT_TRUE(std::ranges::find(asked, away) != asked.end()) << away;
  EXPECT_EQ(lookup.closest()[0].contact.id.words[0], 3U);
}

// However many contacts liars name, and however close: what others named is still there when all of
// those have failed.
TEST_F(DhtHearsay, InventedContactsPushOutNobodyElses) {
  const Id honest{{99, 0, 0, 0}};
  for (uint64_t away = 1'000'001; away <= 1'000'000 + Limits::kFindContacts; ++away)
    lookup.add(contact(away, static_cast<uint32_t>(away)), honest);
  for (uint64_t liar = 1; liar <= 7; ++liar)
    for (uint64_t i = 0; i < 100; ++i)
      lookup.add(contact(liar * 1000 + i, static_cast<uint32_t>(liar * 1000 + i)),
                 Id{{liar, 0, 0, 0}});
  const size_t asked = ask_all(1'000'000).size();
  EXPECT_LE(asked, Limits::kLookupCandidates);
  const auto closest = lookup.closest();
  ASSERT_EQ(closest.size(), Limits::kReplicas);
  for (size_t i = 0; i < closest.size(); ++i)
    EXPECT_EQ(closest[i].contact.id.words[0], 1'000'001 + i);
}

TEST_F(DhtHearsay, WhoFailedGivesWayFirst) {
  for (uint64_t away = 1; away <= Limits::kLookupCandidates; ++away)
    lookup.add(contact(away, static_cast<uint32_t>(away)));
  for (size_t i = 0; i < 20; ++i)
    lookup.failed(lookup.next()->id);
  for (uint64_t away = 1001; away <= 1016; ++away)
    lookup.add(contact(away, static_cast<uint32_t>(away)));
  std::vector<uint64_t> asked;
  while (const auto next = lookup.next()) {
    asked.push_back(next->id.words[0]);
    lookup.failed(next->id);
  }
  EXPECT_EQ(asked.size(), Limits::kLookupCandidates - 20 + 16);
}

} // namespace
} // namespace lah::dht
