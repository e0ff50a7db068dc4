// When a get has heard enough: three consistencies against replicas that differ.
#include <gtest/gtest.h>

#include "dht/operation.hpp"

namespace lah::dht {
namespace {

constexpr WallMs kWall = 1'700'000'000'000;

struct ConsistencyTest : testing::Test, OperationHost {
  uint64_t request(OpId, const Contact& to, Request body) override {
    const MessageKind kind = std::visit([](const auto& request) { return request.kKind; }, body);
    asked.push_back({0, 0, to, kind, {}, 0});
    return 0;
  }
  std::vector<Contact> closest(const Id&) override { return {}; }
  std::vector<Id> replicas_by_time(const Id&, const std::vector<Contact>&) const override {
    return replicas;
  }
  bool verify(const Record& record) override { return verifier.verify(record); }
  WallMs wall_ms() const override { return kWall; }
  Time now() const override { return 0; }

  Record record(const crypto::Identity& owner, uint64_t seq) const {
    return sign_record(owner, "net", key, seq, kWall + 1000, Buffer(3));
  }

  GetOperation& start(Consistency consistency) {
    std::vector<Contact> near;
    for (uint32_t i = 0; i < 8; ++i) {
      PublicKey peer{};
      peer[0] = static_cast<uint8_t>(i + 1);
      near.push_back(Contact::make(peer, {}, Endpoint::v4(0x0a000001 + i, 1)));
    }
    get = std::make_unique<GetOperation>(key, Id{}, std::vector<Record>{}, consistency,
                                         [this](GetResult got) { result = std::move(got); });
    get->start(*this, near);
    return *get;
  }

  // The next peer in line answers; false if nobody was asked.
  bool answer(std::vector<Record> records, bool more = false) {
    if (asked.empty())
      return false;
    const SentRequest request = asked.front();
    asked.erase(asked.begin());
    if (request.kind == MessageKind::kGetPage)
      get->on_answer(*this, request, {}, PageReply{std::move(records), more});
    else
      get->on_answer(*this, request, {}, FindReply{{}, {{{}, std::move(records), more}}});
    return true;
  }

  SeededRng rng{1};
  crypto::Identity alice = crypto::Identity::generate(rng);
  crypto::Identity bob = crypto::Identity::generate(rng);
  RecordVerifier verifier{"net"};
  Id key = record_key("test", as_bytes("key"));
  std::vector<SentRequest> asked;
  std::vector<Id> replicas; // known to be, the nearest in time first
  std::unique_ptr<GetOperation> get;
  GetResult result;
};

TEST_F(ConsistencyTest, FirstEndsAtTheFirstThatHasAnything) {
  start(Consistency::kFirst);
  answer({});
  EXPECT_FALSE(get->finished());
  const size_t open = asked.size();
  answer({record(alice, 1)});
  EXPECT_TRUE(get->finished());
  EXPECT_EQ(asked.size(), open - 1); // and nobody else is asked
  get->complete(*this);
  EXPECT_TRUE(result.complete);
  EXPECT_EQ(result.records, std::vector{record(alice, 1)});
}

TEST_F(ConsistencyTest, FirstWaitsForAllPagesOfOneReplica) {
  start(Consistency::kFirst);
  answer({record(alice, 1)}, true);
  EXPECT_FALSE(get->finished());
  while (asked.front().kind != MessageKind::kGetPage)
    asked.erase(asked.begin());
  answer({record(bob, 1)}, false);
  EXPECT_TRUE(get->finished());
  get->complete(*this);
  EXPECT_EQ(result.records.size(), 2U);
}

TEST_F(ConsistencyTest, WhatFailsVerificationIsNothing) {
  start(Consistency::kFirst);
  Record forged = record(alice, 1);
  forged.seq = 2;
  answer({forged});
  EXPECT_FALSE(get->finished());
  answer({record(alice, 1)});
  EXPECT_TRUE(get->finished());
}

TEST_F(ConsistencyTest, QuorumNeedsThreeThatAgree) {
  start(Consistency::kQuorum);
  answer({record(alice, 1)});
  answer({record(alice, 2)});
  answer({record(alice, 1), record(bob, 1)});
  answer({record(alice, 2)});
  answer({});
  EXPECT_FALSE(get->finished());
  answer({record(alice, 2)});
  EXPECT_TRUE(get->finished());
  get->complete(*this);
  EXPECT_EQ(result.records.size(), 2U); // bob's is live all the same
}

TEST_F(ConsistencyTest, AllHearsEveryReplicaAndSoDoQuorumAndFirstInVain) {
  for (const Consistency consistency :
       {Consistency::kFirst, Consistency::kQuorum, Consistency::kAll}) {
    start(consistency);
    size_t answers = 0;
    const bool vain = consistency != Consistency::kAll;
    while (answer(vain ? std::vector<Record>{} : std::vector{record(alice, 1)})) {
      ++answers;
      EXPECT_EQ(get->finished(), answers == 8);
    }
    EXPECT_EQ(answers, 8U);
  }
}

TEST_F(ConsistencyTest, OfKnownReplicasTheNearestThreeAreAsked) {
  const GetOperation& probe = start(Consistency::kAll);
  EXPECT_FALSE(probe.finished());
  for (const SentRequest& request : asked)
    replicas.insert(replicas.begin(), request.to.id); // the farthest from the key first
  asked.clear();
  start(Consistency::kFirst);
  ASSERT_EQ(asked.size(), Limits::kThriftyAlpha);
  for (size_t i = 0; i < asked.size(); ++i)
    EXPECT_EQ(asked[i].to.id, replicas[i]);
  answer({record(alice, 1)});
  EXPECT_TRUE(get->finished());
  EXPECT_EQ(asked.size(), Limits::kThriftyAlpha - 1);
}

TEST_F(ConsistencyTest, AKnownReplicaThatDisappointsEndsTheThrift) {
  start(Consistency::kAll);
  for (const SentRequest& request : asked)
    replicas.push_back(request.to.id);
  asked.clear();
  start(Consistency::kFirst);
  ASSERT_EQ(asked.size(), Limits::kThriftyAlpha);
  answer({});
  EXPECT_EQ(asked.size(), Limits::kLookupAlpha);
  asked.clear();
  start(Consistency::kFirst);
  get->on_overdue(*this, asked.front());
  EXPECT_EQ(asked.size(), 1 + Limits::kLookupAlpha); // the overdue one no longer counts
  asked.clear();
  start(Consistency::kQuorum); // needs more of them anyway
  EXPECT_EQ(asked.size(), Limits::kLookupAlpha);
}

} // namespace
} // namespace lah::dht
