// rpc::Client and rpc::Server against each other, frame by frame, in virtual time.
#include <gtest/gtest.h>

#include "memory_link.hpp"

namespace lah::rpc {
namespace {

constexpr PeerId kPeer = 1;

ByteView tensor_of(const Buffer& stream, size_t offset, size_t size) {
  return ByteView(stream).subspan(offset, size);
}

bool same(ByteView a, ByteView b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

TEST(RpcCalls, SmallCallIsOneMessageEachWay) {
  Pair pair;
  const std::vector<Buffer> tensors{pattern(100, 1), pattern(7, 2)};
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), sink);
  EXPECT_EQ(pair.to_server.queue.size(), 1u);
  pair.deliver_all();
  ASSERT_EQ(pair.handler.calls.size(), 1u);
  pair.echo();
  EXPECT_EQ(pair.to_client.queue.size(), 1u);
  pair.deliver_all();
  ASSERT_TRUE(sink.outcome);
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
  EXPECT_TRUE(same(tensor_of(sink.stream, 0, 100), tensors[0]));
  EXPECT_TRUE(same(tensor_of(sink.stream, 128, 7), tensors[1]));
  EXPECT_EQ(pair.client.next_deadline(), pair.now + 300 * kSecond); // then the connection closes
}

TEST(RpcCalls, LargeStreamsTravelInChunksWithinTheCreditWindow) {
  Pair pair;
  const std::vector<Buffer> tensors{pattern(9'000'001, 3), pattern(0, 0), pattern(5'000'000, 4)};
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), sink);
  size_t queued = 0;
  for (const auto& message : pair.to_server.queue)
    queued += message.chunk.size();
  EXPECT_LE(queued, Limits::kCreditBytes);
  pair.deliver_all();
  ASSERT_EQ(pair.handler.calls.size(), 1u);
  pair.echo();
  pair.deliver_all();
  ASSERT_EQ(sink.code(), ErrorCode::kNone);
  ASSERT_TRUE(sink.outcome);
  EXPECT_TRUE(same(tensor_of(sink.stream, 0, 9'000'001), tensors[0]));
  EXPECT_TRUE(same(tensor_of(sink.stream, align_up(9'000'001), 5'000'000), tensors[2]));
  EXPECT_LE(std::max(pair.to_server.largest_chunk, pair.to_client.largest_chunk),
            Limits::kChunkBytes);
  EXPECT_EQ(pair.allocator.alive(), 0u);
}

TEST(RpcCalls, SlowLinkLosesNothing) {
  Pair pair;
  pair.to_server.capacity = pair.to_client.capacity = 1;
  const std::vector<Buffer> tensors{pattern(3'500'000, 5)};
  std::array<TestSink, 3> sinks;
  for (TestSink& sink : sinks)
    pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), sink);
  pair.deliver_all();
  ASSERT_EQ(pair.handler.calls.size(), 3u);
  for (size_t i = 0; i < 3; ++i)
    pair.echo();
  pair.deliver_all();
  for (const TestSink& sink : sinks) {
    ASSERT_TRUE(sink.outcome);
    EXPECT_EQ(sink.code(), ErrorCode::kNone);
    EXPECT_TRUE(same(tensor_of(sink.stream, 0, 3'500'000), tensors[0]));
  }
}

TEST(RpcCalls, SmallCallPassesALargeOne) {
  Pair pair;
  pair.to_server.capacity = 2;
  const std::vector<Buffer> large{pattern(60'000'000, 6)};
  const std::vector<Buffer> small{pattern(64, 7)};
  TestSink large_sink;
  TestSink small_sink;
  pair.client.start(pair.now, kPeer, pair.call(large, pair.now + kSecond), large_sink);
  pair.client.start(pair.now, kPeer, pair.call(small, pair.now + kSecond), small_sink);
  for (int i = 0; i < 6; ++i)
    pair.deliver_to_server();
  ASSERT_EQ(pair.handler.calls.size(), 1u); // the small one, while the large one is far from done
  EXPECT_EQ(pair.handler.calls.front().header.total_bytes, 64u);
}

TEST(RpcCalls, ServerRefusalsAreTypedAndHarmNoNeighbour) {
  Pair pair;
  const std::vector<Buffer> tensors{pattern(2'000'000, 1)};
  TestSink unknown;
  OutgoingCall call = pair.call(tensors, pair.now + kSecond);
  call.header.uid = "nobody";
  pair.client.start(pair.now, kPeer, std::move(call), unknown);
  TestSink good;
  pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), good);
  pair.deliver_all();
  EXPECT_EQ(unknown.code(), ErrorCode::kExpertNotFound);
  pair.echo();
  pair.deliver_all();
  EXPECT_EQ(good.code(), ErrorCode::kNone);
  ASSERT_TRUE(good.outcome);
}

TEST(RpcCalls, ErrorsCarryTheRemoteTraceback) {
  Pair pair;
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + kSecond), sink);
  pair.deliver_all();
  pair.server->fail(pair.handler.calls.front().key,
                    {ErrorCode::kExpertError, "ValueError: no", "Traceback: line 1\nline 2", 0});
  pair.deliver_all();
  EXPECT_EQ(sink.code(), ErrorCode::kExpertError);
  EXPECT_EQ(sink.outcome->error.message, "ValueError: no");
  EXPECT_EQ(sink.outcome->error.detail, "Traceback: line 1\nline 2");
}

TEST(RpcCalls, ADeadlineEndsACallWhereverItIs) {
  Pair pair;
  const std::vector<Buffer> tensors{pattern(20'000'000, 1)};
  TestSink unsent;
  pair.to_server.capacity = 0;
  pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), unsent);
  pair.advance(kSecond);
  EXPECT_EQ(unsent.code(), ErrorCode::kDeadlineExceeded);
  pair.to_server.capacity = SIZE_MAX;
  TestSink sending;
  pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), sending);
  while (pair.allocator.alive() == 0 && pair.deliver_to_server()) {
  }
  EXPECT_EQ(pair.allocator.alive(), 1u);
  pair.advance(kSecond);
  EXPECT_EQ(sending.code(), ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(pair.allocator.alive(),
            0u); // the server's half-received request is freed by its own deadline
}

TEST(RpcCalls, CancelFreesBothEnds) {
  Pair pair;
  const std::vector<Buffer> tensors{pattern(20'000'000, 1)};
  TestSink sink;
  const RequestId id =
      pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), sink);
  pair.deliver_to_server();
  pair.client.cancel(pair.now, id);
  EXPECT_EQ(sink.code(), ErrorCode::kCancelled);
  pair.deliver_all();
  EXPECT_EQ(pair.allocator.alive(), 0u);
  TestSink queued;
  const RequestId second =
      pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + kSecond), queued);
  pair.deliver_all();
  pair.client.cancel(pair.now, second);
  pair.deliver_all();
  ASSERT_EQ(pair.handler.cancelled.size(), 1u);
  EXPECT_EQ(pair.handler.cancelled[0].id, second);
}

TEST(RpcCalls, CancelledResultStopsMidStream) {
  Pair pair;
  const std::vector<Buffer> tensors{pattern(20'000'000, 1)};
  TestSink sink;
  const RequestId id =
      pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), sink);
  pair.deliver_all();
  pair.echo();
  pair.deliver_to_client();
  pair.client.cancel(pair.now, id);
  pair.deliver_all();
  EXPECT_EQ(sink.code(), ErrorCode::kCancelled);
  EXPECT_EQ(pair.allocator.alive(), 0u);
}

TEST(RpcCalls, ASilentPeerIsDownAndItsCallsFail) {
  Pair pair;
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + 60 * kSecond), sink);
  pair.deliver_all();
  pair.to_client.queue.clear();
  pair.to_server.capacity = 0; // nothing gets through any more
  for (int i = 0; i < 40 && !sink.outcome; ++i)
    pair.advance(100 * kMillisecond);
  EXPECT_EQ(sink.code(), ErrorCode::kPeerUnreachable);
  ASSERT_EQ(pair.events.size(), 1u);
  EXPECT_EQ(pair.events[0], (std::pair<PeerId, bool>{kPeer, false}));
  pair.to_server.capacity = SIZE_MAX; // back again: the probe finds out without any call
  pair.client.on_writable(pair.now, kPeer);
  pair.advance(1100 * kMillisecond);
  pair.deliver_all();
  ASSERT_EQ(pair.events.size(), 2u);
  EXPECT_EQ(pair.events[1], (std::pair<PeerId, bool>{kPeer, true}));
}

TEST(RpcCalls, APeerStaysWatchedAfterItsCallerGaveUp) {
  Pair pair;
  pair.to_server.capacity = 0;
  TestSink sink;
  const RequestId id =
      pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + 60 * kSecond), sink);
  pair.client.cancel(pair.now, id);
  for (int i = 0; i < 40; ++i)
    pair.advance(100 * kMillisecond);
  ASSERT_EQ(pair.events.size(), 1u);
  EXPECT_FALSE(pair.events[0].second);
}

TEST(RpcCalls, ALongComputationIsNotSilence) {
  Pair pair;
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + 60 * kSecond), sink);
  for (int i = 0; i < 200;
       ++i) { // 20 s in which the network answers pings, and the expert computes
    pair.advance(100 * kMillisecond);
    pair.deliver_all();
  }
  EXPECT_FALSE(sink.outcome);
  EXPECT_TRUE(pair.events.empty());
  pair.echo();
  pair.deliver_all();
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
  EXPECT_TRUE(sink.outcome);
}

TEST(RpcCalls, AServerThatLeavesSaysSo) {
  Pair pair;
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + 60 * kSecond), sink);
  pair.deliver_all();
  pair.server->say_goodbye();
  pair.deliver_all();
  EXPECT_EQ(sink.code(), ErrorCode::kShuttingDown);
  ASSERT_EQ(pair.events.size(), 1u);
  EXPECT_FALSE(pair.events[0].second);
  EXPECT_EQ(pair.to_server.released, 1u);
  pair.advance(2 * kSecond); // then it may be back, on another connection
  EXPECT_TRUE(pair.to_server.queue.empty());
  ASSERT_EQ(pair.events.size(), 2u);
  EXPECT_TRUE(pair.events[1].second);
}

TEST(RpcCalls, AConnectionWithoutUseIsReleased) {
  Pair pair;
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + 60 * kSecond), sink);
  pair.deliver_all();
  pair.echo();
  pair.deliver_all();
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
  pair.advance(299 * kSecond);
  EXPECT_EQ(pair.to_server.released, 0u);
  pair.advance(kSecond);
  EXPECT_EQ(pair.to_server.released, 1u);
  EXPECT_TRUE(pair.events.empty());
  TestSink again;
  pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + 60 * kSecond), again);
  pair.deliver_all();
  pair.echo();
  pair.deliver_all();
  EXPECT_TRUE(again.outcome);
  EXPECT_EQ(again.code(), ErrorCode::kNone);
}

TEST(RpcCalls, ADeadPeerIsProbedForAWhileAndThenForgotten) {
  Pair pair;
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call({pattern(8, 1)}, pair.now + 60 * kSecond), sink);
  size_t probes = 0;
  for (int i = 0; i < 1500 && pair.to_server.released == 0; ++i) {
    pair.advance(100 * kMillisecond);
    probes += std::exchange(pair.to_server.queue, {}).size();
  }
  EXPECT_EQ(sink.code(), ErrorCode::kPeerUnreachable);
  EXPECT_EQ(pair.to_server.released, 1u);
  EXPECT_GT(probes, 110u);
  EXPECT_LT(probes, 140u);
  ASSERT_EQ(pair.events.size(), 2u);
  EXPECT_TRUE(pair.events[1].second);
  pair.advance(10 * kSecond); // the last probes' own time is over
  EXPECT_EQ(pair.client.next_deadline(), kNever);
}

TEST(RpcCalls, StreamsWithGapsAndFalseLengthsAreRefused) {
  Pair pair;
  const std::vector<Buffer> tensors{pattern(5'000'000, 1)};
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), sink);
  pair.deliver_to_server(); // a ping
  pair.deliver_to_server();
  auto& next = pair.to_server.queue.front();
  const Data data = std::get<Data>(*decode(next.header));
  next.header = encode(Data{data.id, data.offset + 64}); // overlaps two pieces
  pair.deliver_to_server();
  pair.deliver_all();
  EXPECT_EQ(sink.code(), ErrorCode::kProtocol);
  EXPECT_EQ(pair.allocator.alive(), 0u);
}

TEST(RpcCalls, BudgetsHoldBeforeMemoryIsTaken) {
  Pair pair;
  const std::vector<Buffer> tensors{pattern(2'000'000, 1)};
  const size_t fits = Limits::kPeerBytes / 2'000'064;
  std::vector<std::unique_ptr<TestSink>> sinks;
  for (size_t i = 0; i < fits + 1; ++i) {
    sinks.push_back(std::make_unique<TestSink>());
    pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + kSecond), *sinks.back());
    while (!pair.to_server.queue.empty() &&
           std::holds_alternative<Call>(*decode(pair.to_server.queue.front().header)))
      pair.deliver_to_server();
    pair.to_server.queue.clear(); // every request stays half received
  }
  pair.deliver_all();
  EXPECT_EQ(sinks.back()->code(), ErrorCode::kOverloaded);
  EXPECT_EQ(pair.allocator.alive(), fits);
  pair.server->forget(kPeer);
  EXPECT_EQ(pair.allocator.alive(), 0u);
}

TEST(RpcCalls, InfoIsAnsweredWithoutTheRuntime) {
  Pair pair;
  TestSink sink;
  OutgoingCall call = pair.call({}, pair.now + kSecond);
  call.header.method = Method::kInfo;
  pair.client.start(pair.now, kPeer, std::move(call), sink);
  pair.deliver_all();
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
  EXPECT_EQ(as_text(sink.stream).substr(0, 18), "{\"expert\": \"echo\"}");
}

TEST(RpcCalls, GarbageFromAPeerIsCountedAndForgotten) {
  Pair pair;
  SeededRng rng(11);
  for (int i = 0; i < 2'000; ++i) {
    Buffer header(1 + rng.below(200));
    rng.fill(header);
    pair.server->on_frames(pair.now, kPeer, header, {});
    pair.client.on_frames(pair.now, kPeer, header, {});
  }
  EXPECT_GT(pair.server->counters().bad_frames, 0u);
  EXPECT_EQ(pair.allocator.alive(), 0u);
}

} // namespace
} // namespace lah::rpc
