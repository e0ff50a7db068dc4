// Retries, hedges and adaptive deadlines, with the test as the servers.
#include <gtest/gtest.h>

#include "memory_link.hpp"
#include "rpc/replica_calls.hpp"

namespace lah::rpc {
namespace {

struct ReplicaCallsTest : testing::Test {
  ReplicatedCall call(std::vector<PeerId> holders, Method method = Method::kForward) {
    ReplicatedCall made;
    made.call.header.uid = "echo";
    made.call.header.method = method;
    made.call.header.tensors = {bytes_meta(tensor.size())};
    made.call.tensors = {tensor};
    made.call.deadline = now + 60 * kSecond;
    made.holders = std::move(holders);
    return made;
  }

  // The calls that were sent and not yet looked at: (holder, request).
  std::vector<std::pair<PeerId, Call>> sent() {
    std::vector<std::pair<PeerId, Call>> found;
    for (const auto& message : std::exchange(link.queue, {}))
      if (const auto decoded = decode(message.header))
        if (const auto* header = std::get_if<Call>(&*decoded))
          found.emplace_back(message.peer, *header);
    return found;
  }

  void answer(PeerId peer, const Call& request) {
    ResultMessage result{request.id, request.total_bytes, 1, 2, 3, request.tensors};
    const Buffer stream(result.total_bytes);
    client.on_frames(now, peer, encode(result), stream);
    calls.on_timer(now);
  }

  void refuse(PeerId peer, const Call& request, ErrorCode code, uint32_t retry_after_ms = 0) {
    client.on_frames(now, peer, encode(ErrorMessage{request.id, code, retry_after_ms, "no"}), {});
    calls.on_timer(now);
  }

  void advance(Duration duration) {
    now += duration;
    client.on_timer(now);
    calls.on_timer(now);
  }

  // Ten calls that take `duration` each teach the client what to expect of a holder.
  void teach(PeerId holder, Duration duration) {
    for (int i = 0; i < 10; ++i) {
      TestSink known;
      calls.start(now, call({holder}), known);
      const auto requests = sent();
      advance(duration);
      answer(holder, requests.at(0).second);
      ASSERT_TRUE(known.outcome);
    }
  }

  Time now = kSecond;
  Buffer tensor = pattern(100, 1);
  SeededRng rng{5};
  MemoryLink link;
  Client client{link, rng, {}, [](PeerId, bool) {}};
  ReplicaCalls calls{client, rng, {}};
  TestSink sink;
};

TEST_F(ReplicaCallsTest, AForwardIsTriedAtAnotherHolderWhenTheFirstIsGone) {
  calls.start(now, call({1, 2}), sink);
  const auto first = sent();
  ASSERT_EQ(first.at(0).first, 1u);
  refuse(1, first[0].second, ErrorCode::kExpertNotFound);
  const auto second = sent();
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].first, 2u);
  answer(2, second[0].second);
  ASSERT_TRUE(sink.outcome);
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
  EXPECT_EQ(sink.outcome->peer, 2u);
  EXPECT_EQ(sink.outcome->retries, 1u);
}

TEST_F(ReplicaCallsTest, ErrorsOfTheExpertItselfAreFinal) {
  calls.start(now, call({1, 2}), sink);
  refuse(1, sent().at(0).second, ErrorCode::kExpertError);
  EXPECT_EQ(sink.code(), ErrorCode::kExpertError);
  EXPECT_TRUE(sent().empty());
}

TEST_F(ReplicaCallsTest, ABackwardIsNeverSentElsewhere) {
  calls.start(now, call({1, 2}, Method::kBackward), sink);
  refuse(1, sent().at(0).second, ErrorCode::kShuttingDown);
  EXPECT_EQ(sink.code(), ErrorCode::kShuttingDown);
}

TEST_F(ReplicaCallsTest, AnOverloadedServerIsAskedAgainAfterTheTimeItNamed) {
  calls.start(now, call({1}, Method::kBackward), sink);
  refuse(1, sent().at(0).second, ErrorCode::kOverloaded, 700);
  advance(699 * kMillisecond);
  EXPECT_TRUE(sent().empty());
  advance(200 * kMillisecond); // and the jitter
  const auto again = sent();
  ASSERT_EQ(again.size(), 1u);
  answer(1, again[0].second);
  ASSERT_TRUE(sink.outcome);
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
}

TEST_F(ReplicaCallsTest, RetriesEndWithTheDeadlineAndWithTheBudget) {
  ReplicatedCall soon = call({1});
  soon.call.deadline = now + 500 * kMillisecond;
  calls.start(now, std::move(soon), sink);
  refuse(1, sent().at(0).second, ErrorCode::kOverloaded, 600);
  EXPECT_EQ(sink.code(), ErrorCode::kOverloaded);
  int retries = 0;
  for (int i = 0; i < 200; ++i) {
    TestSink failing;
    calls.start(now, call({1, 2}), failing);
    for (auto requests = sent(); !requests.empty(); requests = sent()) {
      refuse(requests[0].first, requests[0].second, ErrorCode::kExpertNotFound);
      ++retries;
    }
    ASSERT_TRUE(failing.outcome);
    --retries; // the first attempt is no retry
  }
  EXPECT_LE(retries, 10 + 200 / 10);
  EXPECT_GT(calls.counters().over_budget, 0u);
}

TEST_F(ReplicaCallsTest, ASlowForwardIsHedgedAfterItsUsualTime) {
  teach(1, 100 * kMillisecond);
  calls.start(now, call({1, 2}), sink);
  const auto first = sent();
  advance(90 * kMillisecond);
  EXPECT_TRUE(sent().empty());
  advance(20 * kMillisecond);
  const auto hedge = sent();
  ASSERT_EQ(hedge.size(), 1u);
  EXPECT_EQ(hedge[0].first, 2u);
  answer(2, hedge[0].second);
  ASSERT_TRUE(sink.outcome);
  EXPECT_TRUE(sink.outcome->hedged);
  EXPECT_EQ(sink.outcome->peer, 2u);
  ASSERT_EQ(link.queue.size(), 1u); // the slow one is told to stop
  EXPECT_TRUE(std::holds_alternative<Cancel>(*decode(link.queue.front().header)));
  answer(1, first[0].second); // too late, and harmless
  EXPECT_EQ(calls.counters().hedges_won, 1u);
}

TEST_F(ReplicaCallsTest, TheFirstHolderMayStillWinAgainstItsHedge) {
  teach(1, 100 * kMillisecond);
  calls.start(now, call({1, 2}), sink);
  const auto first = sent();
  advance(110 * kMillisecond);
  const auto hedge = sent();
  answer(1, first[0].second);
  ASSERT_TRUE(sink.outcome);
  EXPECT_EQ(sink.outcome->peer, 1u);
  EXPECT_EQ(calls.counters().hedges_won, 0u);
}

TEST_F(ReplicaCallsTest, AFailedHedgeLeavesTheFirstHolderItsTime) {
  teach(1, 100 * kMillisecond);
  calls.start(now, call({1, 2}), sink);
  const auto first = sent();
  advance(110 * kMillisecond);
  refuse(2, sent().at(0).second, ErrorCode::kOverloaded);
  EXPECT_FALSE(sink.outcome);
  answer(1, first[0].second);
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
  EXPECT_TRUE(sink.outcome);
}

TEST_F(ReplicaCallsTest, HedgesAreFewOfAllCalls) {
  teach(1, 10 * kMillisecond);
  for (int i = 0; i < 200; ++i) {
    TestSink slow;
    calls.start(now, call({1, 2}), slow);
    const auto requests = sent();
    advance(50 * kMillisecond);
    answer(1, requests.at(0).second);
    ASSERT_TRUE(slow.outcome);
    sent();
  }
  EXPECT_LE(calls.counters().hedges, 10u + 211u / 20u);
}

TEST_F(ReplicaCallsTest, AdaptiveDeadlinesComeFromWhatCallsTook) {
  ReplicatedCall unknown = call({1});
  unknown.adaptive = true;
  calls.start(now, std::move(unknown), sink);
  EXPECT_EQ(sent().at(0).second.deadline_ms, 60'000u); // nothing is known yet
  teach(1, 500 * kMillisecond);
  ReplicatedCall known = call({1});
  known.adaptive = true;
  TestSink late;
  calls.start(now, std::move(known), late);
  EXPECT_EQ(sent().at(0).second.deadline_ms, 5'000u + 4u * 500u);
  advance(7 * kSecond);
  EXPECT_EQ(late.code(), ErrorCode::kDeadlineExceeded);
  ReplicatedCall next = call({1});
  next.adaptive = true;
  TestSink patient;
  calls.start(now, std::move(next), patient);
  EXPECT_EQ(sent().at(0).second.deadline_ms, 5'000u + 4u * 7'000u); // it backs off
}

TEST_F(ReplicaCallsTest, ACancelledCallEndsOnceAndTellsItsHolders) {
  const auto id = calls.start(now, call({1}), sink);
  sent();
  calls.cancel(now, id);
  EXPECT_EQ(sink.code(), ErrorCode::kCancelled);
  ASSERT_EQ(link.queue.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<Cancel>(*decode(link.queue.front().header)));
  EXPECT_EQ(calls.next_deadline(), kNever);
}

} // namespace
} // namespace lah::rpc
