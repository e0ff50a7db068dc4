// The lookup: the pure part of Kademlia that says whom to ask next.
#include "dht/lookup.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

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

// A lookup over a static network equals brute force, whatever order the answers come in.
TEST(DhtLookup, FindsTheTrueClosest) {
  SeededRng rng(7);
  std::vector<Contact> all;
  for (int i = 0; i < 300; ++i)
    all.push_back(random_contact(rng));
  std::vector<std::unique_ptr<RoutingTable>> tables;
  for (const Contact& self : all) {
    tables.push_back(std::make_unique<RoutingTable>(self.id));
    for (const Contact& other : all)
      tables.back()->confirm(other, kRtt, 0);
  }
  for (int round = 0; round < 20; ++round) {
    const Id target = random_id(rng);
    Lookup lookup(target, random_id(rng), Lookup::Patience::kPatient);
    lookup.add(all[rng.below(all.size())]);
    std::vector<Contact> flight;
    while (true) {
      while (const auto next = lookup.next())
        flight.push_back(*next);
      EXPECT_LE(flight.size(), Limits::kLookupAlpha);
      if (flight.empty())
        break;
      const size_t pick = rng.below(flight.size());
      const Contact asked = flight[pick];
      flight.erase(flight.begin() + static_cast<std::ptrdiff_t>(pick));
      const auto index =
          static_cast<size_t>(std::find(all.begin(), all.end(), asked) - all.begin());
      for (const Contact& contact : tables[index]->closest(target, 16))
        lookup.add(contact);
      lookup.answered(asked.id, {});
    }
    EXPECT_TRUE(lookup.finished());
    std::vector<Contact> truth = all;
    std::sort(truth.begin(), truth.end(), [&](const Contact& a, const Contact& b) {
      return distance(a.id, target) < distance(b.id, target);
    });
    const auto found = lookup.closest();
    ASSERT_EQ(found.size(), Limits::kReplicas);
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_EQ(found[i].contact, truth[i]);
  }
}

TEST(DhtLookup, OverduePeersAreReplacedAtOnceAndTheirLateAnswersCount) {
  SeededRng rng(8);
  Lookup lookup(random_id(rng), random_id(rng), Lookup::Patience::kPatient);
  for (int i = 0; i < 20; ++i)
    lookup.add(random_contact(rng));
  std::vector<Contact> asked;
  while (const auto next = lookup.next())
    asked.push_back(*next);
  ASSERT_EQ(asked.size(), Limits::kLookupAlpha);
  lookup.overdue(asked[0].id);
  EXPECT_TRUE(lookup.next().has_value());
  EXPECT_FALSE(lookup.next().has_value());
  lookup.answered(asked[0].id, Token{9});
  EXPECT_EQ(lookup.closest().at(0).contact, asked[0]);
  EXPECT_EQ(lookup.closest().at(0).token, Token{9});
}

TEST(DhtLookup, ImpatientEndsWithoutTheOverduePatientOnlyWithoutTheLapsed) {
  SeededRng rng(9);
  for (const bool patient : {false, true}) {
    Lookup lookup(random_id(rng), random_id(rng),
                  patient ? Lookup::Patience::kPatient : Lookup::Patience::kImpatient);
    lookup.add(random_contact(rng));
    lookup.add(random_contact(rng));
    const Contact first = *lookup.next();
    const Contact second = *lookup.next();
    lookup.overdue(first.id);
    EXPECT_FALSE(lookup.finished());
    lookup.answered(second.id, {});
    EXPECT_EQ(lookup.finished(), !patient);
    lookup.lapsed(first.id);
    EXPECT_TRUE(lookup.finished());
    lookup.answered(first.id, {}); // still in time, if others keep the lookup going
    EXPECT_EQ(lookup.closest().size(), 2U);
  }
}

TEST(DhtLookup, KnowsWhoIsLikelyToBeAmongTheClosestAndWhoMayStillCome) {
  SeededRng rng(15);
  Lookup lookup(random_id(rng), random_id(rng), Lookup::Patience::kPatient);
  for (int i = 0; i < 12; ++i)
    lookup.add(random_contact(rng));
  std::vector<Contact> asked;
  while (const auto next = lookup.next()) {
    asked.push_back(*next);
    if (asked.size() > 1) // all but the closest answer
      lookup.answered(next->id, {});
  }
  ASSERT_EQ(asked.size(), Limits::kReplicas + Limits::kLookupSpares);
  EXPECT_EQ(lookup.closest_so_far().size(), Limits::kReplicas - 1); // a place is kept for it
  EXPECT_TRUE(lookup.awaits_late());
  lookup.overdue(asked[0].id);
  EXPECT_EQ(lookup.closest_so_far().size(), Limits::kReplicas);
  EXPECT_EQ(lookup.closest_so_far().back().contact, asked[Limits::kReplicas]);
  lookup.lapsed(asked[0].id);
  EXPECT_TRUE(lookup.finished());
  EXPECT_TRUE(lookup.awaits_late());
  Lookup other = lookup;
  lookup.answered(asked[0].id, {});
  EXPECT_EQ(lookup.closest_so_far().front().contact, asked[0]);
  EXPECT_FALSE(lookup.awaits_late());
  other.failed(asked[0].id);
  EXPECT_FALSE(other.awaits_late());
}

TEST(DhtLookup, AsksSoManyAtOnce) {
  SeededRng rng(13);
  for (const size_t alpha : {Limits::kBackgroundAlpha, Limits::kLookupAlpha, Limits::kReplicas}) {
    Lookup lookup(random_id(rng), random_id(rng), Lookup::Patience::kImpatient, alpha);
    for (int i = 0; i < 20; ++i)
      lookup.add(random_contact(rng));
    size_t asked = 0;
    while (lookup.next())
      ++asked;
    EXPECT_EQ(asked, alpha);
  }
}

TEST(DhtLookup, ThePatientAskAFewToSpare) {
  SeededRng rng(14);
  for (const bool patient : {false, true}) {
    Lookup lookup(random_id(rng), random_id(rng),
                  patient ? Lookup::Patience::kPatient : Lookup::Patience::kImpatient);
    for (int i = 0; i < 20; ++i)
      lookup.add(random_contact(rng));
    size_t asked = 0;
    while (const auto next = lookup.next()) {
      lookup.answered(next->id, {});
      ++asked;
    }
    EXPECT_EQ(asked, Limits::kReplicas + (patient ? Limits::kLookupSpares : 0));
    EXPECT_EQ(lookup.closest().size(), Limits::kReplicas);
  }
}

TEST(DhtLookup, SilenceOfAllEndsItOnlyWhenTheyFailed) {
  SeededRng rng(10);
  Lookup lookup(random_id(rng), random_id(rng), Lookup::Patience::kImpatient);
  lookup.add(random_contact(rng));
  const Contact only = *lookup.next();
  lookup.overdue(only.id);
  EXPECT_FALSE(lookup.finished());
  lookup.failed(only.id);
  EXPECT_TRUE(lookup.finished());
  EXPECT_TRUE(lookup.closest().empty());
}

TEST(DhtLookup, HoldsABoundedNumberOfCandidatesAndNeverItself) {
  SeededRng rng(11);
  const Contact self = random_contact(rng);
  Lookup lookup(random_id(rng), self.id, Lookup::Patience::kImpatient);
  lookup.add(self);
  EXPECT_TRUE(lookup.empty());
  for (size_t i = 0; i < 10 * Limits::kLookupCandidates; ++i)
    lookup.add(random_contact(rng));
  size_t asked = 0;
  while (const auto next = lookup.next()) {
    lookup.failed(next->id);
    ++asked;
  }
  EXPECT_EQ(asked, Limits::kLookupCandidates);
}

} // namespace
} // namespace lah::dht
