// The storing side of listening, alone: who is told what, and when.
#include <gtest/gtest.h>

#include "dht/listeners.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

const Id kKey{{0, 0, 0, 7}};

struct ListenersTest : testing::Test {
  static Contact contact(uint8_t number) {
    return Contact::make(PublicKey{number}, {}, Endpoint::v4(0x0a000000U + number, 1));
  }
  void listen(uint8_t number, bool refreshes = true) {
    EXPECT_GT(
        listeners.listen(now, kWall, contact(number), {kKey, Limits::kListenMs, refreshes}, storage)
            .lifetime_ms,
        0U);
  }
  void store(const crypto::Identity& owner, std::string_view text) {
    const Record record =
        sign_record(owner, "net", kKey, ++seq, kWall + 60'000, sim::payload(text));
    const Storage::PutResult put = storage.put(record, std::nullopt, kWall, verifier);
    ASSERT_EQ(put.verdict, Verdict::kStored);
    listeners.on_stored(now, kWall, record, put.changed);
  }
  std::vector<Listeners::Push> due() { return listeners.take_due(now, kWall, storage); }

  static constexpr WallMs kWall = 1'700'000'000'000;
  SeededRng rng{5};
  crypto::Identity owner = crypto::Identity::generate(rng);
  Storage storage{Id{}};
  RecordVerifier verifier{"net"};
  Listeners listeners;
  Time now = 0;
  uint64_t seq = 0;
  const Reply yes = NotifyReply{true, {}};
};

TEST_F(ListenersTest, AChangeGoesOutAtOnceTheNextOnesTogether) {
  listen(1);
  now = kSecond;
  store(owner, "a");
  auto pushes = due();
  ASSERT_EQ(pushes.size(), 1U);
  EXPECT_EQ(pushes[0].body.records.size(), 1U);
  listeners.on_pushed(now, pushes[0], &yes);
  const crypto::Identity other = crypto::Identity::generate(rng);
  store(owner, "b");
  store(other, "c");
  store(owner, "d");
  EXPECT_TRUE(due().empty());
  now += Listeners::kBatch;
  pushes = due();
  ASSERT_EQ(pushes.size(), 1U);
  EXPECT_EQ(pushes[0].body.records.size(), 2U);
}

TEST_F(ListenersTest, RefreshesAreLateShortAndOnlyForThoseWhoWantThem) {
  store(owner, "a");
  listen(1, true);
  listen(2, false);
  store(owner, "a");
  EXPECT_TRUE(due().empty());
  now += 6 * kSecond;
  const auto pushes = due();
  ASSERT_EQ(pushes.size(), 1U);
  EXPECT_EQ(pushes[0].to.key, contact(1).key);
  EXPECT_TRUE(pushes[0].body.records.empty());
  ASSERT_EQ(pushes[0].body.refreshes.size(), 1U);
  EXPECT_EQ(pushes[0].body.refreshes[0].seq, seq);
}

TEST_F(ListenersTest, WhatWasLostIsSentAgainAndWhoIsSilentTwiceIsDropped) {
  listen(1);
  now = kSecond;
  store(owner, "a");
  auto pushes = due();
  ASSERT_EQ(pushes.size(), 1U);
  store(owner, "a"); // a refresh meanwhile must not hide that the content never arrived
  listeners.on_pushed(now, pushes[0], nullptr);
  EXPECT_EQ(listeners.size(), 1U);
  now += kSecond;
  pushes = due();
  ASSERT_EQ(pushes.size(), 1U);
  EXPECT_EQ(pushes[0].body.records.size(), 1U);
  EXPECT_EQ(pushes[0].body.records[0].seq, seq);
  listeners.on_pushed(now, pushes[0], nullptr);
  EXPECT_EQ(listeners.size(), 0U);
  EXPECT_TRUE(due().empty());
}

TEST_F(ListenersTest, WhoDoesNotListenOrRenewIsForgotten) {
  listen(1);
  listen(2);
  store(owner, "a");
  for (const auto& push : due())
    if (push.to.key == contact(1).key)
      listeners.on_pushed(now, push, std::make_unique<Reply>(NotifyReply{false, {}}).get());
    else
      listeners.on_pushed(now, push, &yes);
  EXPECT_EQ(listeners.size(), 1U);
  now += milliseconds(2 * Limits::kListenMs);
  EXPECT_TRUE(due().empty());
  EXPECT_EQ(listeners.size(), 0U);
  EXPECT_EQ(listeners.next_deadline(), kNever);
}

TEST_F(ListenersTest, ASubnetHasRoomForSoManyOfAllKeysAndALocalOneForMore) {
  const auto granted = [&](size_t number, uint32_t address, uint64_t lifetime_ms) {
    PublicKey key{};
    std::memcpy(key.data(), &number, sizeof(number));
    const Contact each = Contact::make(key, {}, Endpoint::v4(address, 1));
    const Id topic{{0, 0, 0, number % 7}};
    return listeners.listen(now, kWall, each, {topic, lifetime_ms, true}, storage).lifetime_ms > 0;
  };
  constexpr uint32_t kPublic = 0x50000000U;
  constexpr uint32_t kOther = kPublic + 256;
  constexpr size_t kMost = Limits::kListenersPerSubnet;
  for (size_t i = 0; i < kMost; ++i)
    EXPECT_TRUE(granted(i, kPublic + static_cast<uint32_t>(i % 200), Limits::kListenMs));
  EXPECT_FALSE(granted(kMost, kPublic + 1, Limits::kListenMs));
  EXPECT_TRUE(granted(0, kPublic, Limits::kListenMs)); // renewed
  EXPECT_TRUE(granted(kMost, kOther, Limits::kListenMs));
  EXPECT_FALSE(granted(kMost, kPublic, Limits::kListenMs)); // moves in
  EXPECT_TRUE(granted(0, kOther, Limits::kListenMs));       // moves out
  EXPECT_TRUE(granted(kMost, kPublic, Limits::kListenMs));
  EXPECT_FALSE(granted(1, kPublic, 0)); // leaves
  EXPECT_TRUE(granted(kMost + 1, kPublic, Limits::kListenMs));
  for (size_t i = 2 * kMost; i < 4 * kMost; ++i)
    EXPECT_TRUE(granted(i, 0x0a000001U, Limits::kListenMs));
  now += milliseconds(2 * Limits::kListenMs);
  EXPECT_TRUE(due().empty()); // and all of them are forgotten
  EXPECT_EQ(listeners.size(), 0U);
  EXPECT_TRUE(granted(5 * kMost, kPublic, Limits::kListenMs));
}

TEST_F(ListenersTest, OneKeyHasRoomForSoMany) {
  for (size_t i = 0; i < Limits::kListenersPerKey; ++i) {
    PublicKey key{};
    std::memcpy(key.data(), &i, sizeof(i));
    const Contact each = Contact::make(key, {}, Endpoint::v4(0x0a000001U, 1));
    listeners.listen(now, kWall, each, {kKey, Limits::kListenMs, true}, storage);
  }
  EXPECT_EQ(listeners.size(), Limits::kListenersPerKey);
  const ListenRequest one_more{kKey, Limits::kListenMs, true};
  const Contact late = Contact::make(PublicKey{0, 0, 0, 9}, {}, Endpoint::v4(0x0a000001U, 1));
  EXPECT_EQ(listeners.listen(now, kWall, late, one_more, storage).lifetime_ms, 0U);
  store(owner, "a");
  EXPECT_EQ(due().size(), Limits::kNotifiesInFlight); // the others when these are answered
}

TEST_F(ListenersTest, AllKeysTogetherHaveRoomForSoMany) {
  size_t granted = 0;
  for (size_t i = 0; i <= Limits::kListeners; ++i) {
    PublicKey key{};
    std::memcpy(key.data(), &i, sizeof(i));
    const Contact each{key, {}, Endpoint::v4(0x0a000001U, 1), {}};
    const Id topic{{0, 0, 1, i % 8}};
    granted +=
        listeners.listen(now, kWall, each, {topic, Limits::kListenMs, true}, storage).lifetime_ms >
        0;
  }
  EXPECT_EQ(granted, Limits::kListeners);
  EXPECT_EQ(listeners.size(), Limits::kListeners);
}

TEST_F(ListenersTest, OneListenerHasSoManyNotifiesInFlight) {
  listen(1);
  for (size_t i = 0; i < 3 * Limits::kNotifyBurst; ++i) // each needs a NOTIFY of its own
    store(crypto::Identity::generate(rng), std::string(700, 'x'));
  auto pushes = due();
  EXPECT_EQ(pushes.size(), Limits::kNotifyBurst);
  now += kSecond;
  EXPECT_TRUE(due().empty());
  for (const auto& push : pushes)
    listeners.on_pushed(now, push, &yes);
  EXPECT_EQ(due().size(), Limits::kNotifyBurst);
}

} // namespace
} // namespace lah::dht
