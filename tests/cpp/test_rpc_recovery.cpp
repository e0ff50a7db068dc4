// Calls whose connection is lost, or whose server restarts, on their way.
#include <gtest/gtest.h>

#include "memory_link.hpp"

namespace lah::rpc {
namespace {

constexpr PeerId kPeer = 1;

struct RpcRecovery : testing::Test {
  // Both ends know each other: the client has heard the connection's number.
  RpcRecovery() { ping(); }

  void ping() {
    pair.client.ping(pair.now, kPeer, pair.now + kSecond, [](const Error&, Duration) {});
    pair.deliver_all();
  }

  RequestId start(Method method, const std::vector<Buffer>& tensors, TestSink& sink) {
    OutgoingCall call = pair.call(tensors, pair.now + 60 * kSecond);
    call.header.method = method;
    return pair.client.start(pair.now, kPeer, std::move(call), sink);
  }

  // Until the client's own pings have told it that something was lost.
  void notice() {
    for (int i = 0; i < 4; ++i) {
      pair.advance(100 * kMillisecond);
      pair.deliver_all();
    }
  }

  // The one request that is there gets its answer, and the caller hears of it.
  void expect_answered(const TestSink& caller) {
    ASSERT_EQ(pair.handler.calls.size(), 1u);
    EXPECT_FALSE(caller.outcome);
    pair.echo();
    pair.deliver_all();
    ASSERT_TRUE(caller.outcome);
    EXPECT_EQ(caller.code(), ErrorCode::kNone);
  }

  Pair pair{7};
  TestSink sink;
  std::vector<Buffer> small{pattern(100, 1)};
  std::vector<Buffer> large{pattern(9'000'000, 2)};
};

TEST_F(RpcRecovery, AForwardCallThatWasLostIsSentAgain) {
  start(Method::kForward, small, sink);
  pair.reconnect();
  notice();
  expect_answered(sink);
  EXPECT_EQ(sink.outcome->resends, 1u);
}

TEST_F(RpcRecovery, ALargeRequestStartsAnewAndTheHalfOfItIsFreed) {
  start(Method::kForward, large, sink);
  for (int i = 0; i < 3; ++i)
    pair.deliver_to_server();
  EXPECT_EQ(pair.allocator.alive(), 1u);
  pair.reconnect();
  notice();
  EXPECT_EQ(pair.allocator.alive(), 1u); // the complete one
  expect_answered(sink);
  EXPECT_TRUE(std::equal(large[0].begin(), large[0].end(), sink.stream.begin()));
  EXPECT_EQ(pair.allocator.alive(), 0u);
}

TEST_F(RpcRecovery, ALargeResultThatBrokeOffArrivesWhole) {
  start(Method::kForward, large, sink);
  pair.deliver_all();
  pair.echo();
  for (int i = 0; i < 3; ++i)
    pair.deliver_to_client();
  pair.reconnect();
  notice();
  expect_answered(sink);
  EXPECT_TRUE(std::equal(large[0].begin(), large[0].end(), sink.stream.begin()));
}

TEST_F(RpcRecovery, ABackwardThatWasAppliedIsAnsweredAgainAndNotAppliedAgain) {
  start(Method::kBackward, small, sink);
  pair.deliver_all();
  pair.echo();
  pair.reconnect(); // with the answer
  notice();
  EXPECT_TRUE(pair.handler.calls.empty());
  ASSERT_TRUE(sink.outcome);
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
  EXPECT_TRUE(std::equal(small[0].begin(), small[0].end(), sink.stream.begin()));
  EXPECT_EQ(pair.server->counters().repeated, 1u);
}

TEST_F(RpcRecovery, ABackwardThatIsBeingAppliedAnswersOverTheNewConnection) {
  start(Method::kBackward, small, sink);
  pair.deliver_all();
  pair.reconnect();
  notice();
  expect_answered(sink);
}

TEST_F(RpcRecovery, ABackwardThatNeverArrivedIsAppliedOnce) {
  start(Method::kBackward, small, sink);
  pair.reconnect();
  notice();
  expect_answered(sink);
}

TEST_F(RpcRecovery, ABackwardOfAFormerLifeIsNotAppliedInTheNext) {
  start(Method::kBackward, small, sink);
  pair.deliver_all();
  pair.restart(8);
  notice();
  EXPECT_TRUE(pair.handler.calls.empty());
  EXPECT_EQ(sink.code(), ErrorCode::kPeerUnreachable);
}

TEST_F(RpcRecovery, AForwardOfAFormerLifeIsComputedInTheNext) {
  start(Method::kForward, small, sink);
  pair.deliver_all();
  pair.restart(8);
  notice();
  expect_answered(sink);
}

TEST_F(RpcRecovery, ASlowCallToANewIncarnationIsNotMistakenForOneToTheOld) {
  pair.restart(8);
  start(Method::kBackward, small, sink); // reaches the new one, of which the client knows nothing
  pair.deliver_all();
  notice(); // by a ping that the call overtook
  expect_answered(sink);
}

TEST_F(RpcRecovery, AFailedBackwardMayBeAppliedLater) {
  start(Method::kBackward, small, sink);
  pair.deliver_all();
  pair.server->fail(pair.handler.calls.front().key, {ErrorCode::kOverloaded, "full", "", 5});
  pair.reconnect();
  pair.handler.calls.clear();
  notice();
  EXPECT_EQ(pair.handler.calls.size(), 1u);
}

TEST_F(RpcRecovery, AConnectionThatIsLostAgainAndAgainEndsTheCall) {
  start(Method::kForward, small, sink);
  for (int i = 0; i < 20 && !sink.outcome; ++i) {
    pair.reconnect();
    pair.handler.calls.clear();
    notice();
  }
  EXPECT_EQ(sink.code(), ErrorCode::kPeerUnreachable);
  EXPECT_EQ(sink.outcome->resends, Limits::kResends);
}

TEST_F(RpcRecovery, ARefusedConnectionIsKnownToBeDeadBeforeSilenceWould) {
  start(Method::kForward, small, sink);
  pair.to_server.capacity = 0;
  pair.client.on_refused(pair.now, kPeer); // too soon: it may just be starting
  EXPECT_FALSE(sink.outcome);
  for (int i = 0; i < 12; ++i)
    pair.advance(100 * kMillisecond);
  EXPECT_EQ(pair.to_server.probes, 1u);
  pair.client.on_refused(pair.now, kPeer);
  EXPECT_EQ(sink.code(), ErrorCode::kPeerUnreachable);
  EXPECT_TRUE(pair.client.down(kPeer));
}

TEST_F(RpcRecovery, TheServerForgetsConnectionsThatFellSilent) {
  start(Method::kForward, small, sink);
  pair.deliver_all();
  pair.advance(1200 * kSecond); // an open call keeps its connection
  EXPECT_EQ(pair.to_client.released, 0u);
  pair.echo();
  pair.deliver_all();
  pair.advance(1200 * kSecond);
  EXPECT_EQ(pair.to_client.released, 1u);
}

TEST_F(RpcRecovery, WhatWaitsToBeComputedCountsAgainstTheBudget) {
  const std::vector<Buffer> half{pattern(Limits::kPeerBytes / 2, 3)};
  std::array<TestSink, 3> sinks;
  for (TestSink& each : sinks) {
    start(Method::kForward, half, each);
    pair.deliver_all();
  }
  EXPECT_EQ(pair.handler.calls.size(), 2u);
  EXPECT_EQ(sinks[2].code(), ErrorCode::kOverloaded);
  for (int i = 0; i < 2; ++i)
    pair.server->fail(pair.handler.calls[static_cast<size_t>(i)].key,
                      {ErrorCode::kExpertError, "no"});
  pair.handler.calls.clear();
  start(Method::kForward, half, sink);
  pair.deliver_all();
  EXPECT_EQ(pair.handler.calls.size(), 1u);
}

TEST_F(RpcRecovery, NothingIsComputedForACallerWhoLeftButGradientsAre) {
  const RequestId forward = start(Method::kForward, small, sink);
  TestSink other;
  start(Method::kBackward, small, other);
  pair.deliver_all();
  pair.server->forget(pair.connection);
  ASSERT_EQ(pair.handler.cancelled.size(), 1u);
  EXPECT_EQ(pair.handler.cancelled[0].id, forward);
}

TEST(BackwardMemory, IsBoundedByTimeAndBytes) {
  BackwardMemory memory;
  const auto id = [](uint8_t n) { return RequestId{n}; };
  OutgoingResult result;
  result.header.total_bytes = Limits::kBackwardBytes / 2;
  for (uint8_t n = 1; n <= 3; ++n) {
    memory.open(id(n), "caller", 1);
    memory.applied(n * kSecond, id(n), result);
  }
  EXPECT_LE(memory.bytes(), Limits::kBackwardBytes);
  EXPECT_TRUE(memory.find(id(1))->applied);
  EXPECT_FALSE(memory.find(id(1))->kept);
  EXPECT_TRUE(memory.find(id(3))->kept);
  memory.open(id(4), "caller", 1);
  memory.failed(id(4));
  memory.failed(id(3)); // applied is applied
  EXPECT_EQ(memory.size(), 3u);
  memory.expire(milliseconds(Limits::kBackwardMemoryMs) + 2 * kSecond);
  EXPECT_EQ(memory.size(), 1u);
  memory.expire(memory.next_deadline());
  EXPECT_EQ(memory.size(), 0u);
  EXPECT_EQ(memory.bytes(), 0u);
}

} // namespace
} // namespace lah::rpc
