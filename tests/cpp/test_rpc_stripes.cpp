// Streams over several connections of one caller.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "memory_link.hpp"

namespace lah::rpc {
namespace {

constexpr PeerId kPeer = 1;
constexpr Duration kOneWay = 20 * kMillisecond;

// A long link: what is sent in one step arrives in the next, that of later stripes first.
struct LongPair : Pair {
  LongPair() { to_client.key = "the caller's key"; }

  static void shuffle(std::deque<MemoryLink::Message>& queue, std::set<PeerId>& used) {
    std::stable_sort(queue.begin(), queue.end(),
                     [](const auto& a, const auto& b) { return a.peer > b.peer; });
    for (const auto& message : queue)
      if (std::holds_alternative<Data>(*decode(message.header)))
        used.insert(message.peer);
  }

  void step() {
    advance(kOneWay);
    shuffle(to_server.queue, up);
    for (size_t left = to_server.queue.size(); left > 0; --left)
      deliver_to_server();
    advance(kOneWay);
    shuffle(to_client.queue, down);
    for (size_t left = to_client.queue.size(); left > 0; --left)
      deliver_to_client();
  }

  std::set<PeerId> up, down; // the connections that DATA took
};

TEST(RpcStripes, LongStreamsOverALongLinkTakeSeveralConnectionsInAnyOrder) {
  LongPair pair;
  const std::vector<Buffer> tensors{pattern(30'000'001, 1), pattern(34'000'000, 2)};
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + 60 * kSecond), sink);
  pair.to_server.capacity = pair.to_client.capacity = 5; // so that the streams take their time
  for (int i = 0; i < 100 && pair.handler.calls.empty(); ++i)
    pair.step();
  ASSERT_EQ(pair.handler.calls.size(), 1u);
  EXPECT_GE(pair.up.size(), 3u);
  EXPECT_LE(pair.up.size(), Limits::kStripes);
  pair.echo();
  for (int i = 0; i < 100 && !sink.outcome; ++i)
    pair.step();
  EXPECT_EQ(sink.code(), ErrorCode::kNone);
  EXPECT_GE(pair.down.size(), 3u);
  EXPECT_TRUE(std::equal(tensors[0].begin(), tensors[0].end(), sink.stream.begin()));
  EXPECT_TRUE(std::equal(tensors[1].begin(), tensors[1].end(),
                         sink.stream.begin() + static_cast<ptrdiff_t>(align_up(30'000'001))));
  EXPECT_EQ(pair.server->counters().bad_frames, 0u);
}

TEST(RpcStripes, ShortWaysAndUnencryptedOnesTakeOne) {
  for (const bool encrypted : {true, false}) {
    LongPair pair;
    if (!encrypted)
      pair.to_client.key.clear();
    const std::vector<Buffer> tensors{pattern(64'000'000, 1)};
    TestSink sink;
    pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + 60 * kSecond), sink);
    for (int i = 0; i < 200 && pair.handler.calls.empty(); ++i)
      if (encrypted)
        pair.deliver_all();
      else
        pair.step();
    EXPECT_EQ(pair.handler.calls.size(), 1u);
    EXPECT_LE(pair.up.size(), 1u);
  }
}

TEST(RpcStripes, AStripeThatLostWhatItCarriedCostsTimeAndNothingElse) {
  LongPair pair;
  const std::vector<Buffer> tensors{pattern(64'000'000, 1)};
  TestSink sink;
  pair.client.start(pair.now, kPeer, pair.call(tensors, pair.now + 60 * kSecond), sink);
  pair.to_server.capacity = 8; // so that the stream takes its time
  PeerId lost = 0;
  for (int i = 0; i < 100 && lost == 0; ++i) {
    pair.step();
    for (const auto& message : pair.to_server.queue)
      if (message.peer != kPeer && std::holds_alternative<Data>(*decode(message.header)))
        lost = message.peer;
  }
  ASSERT_NE(lost, 0u);
  ASSERT_TRUE(pair.handler.calls.empty());
  std::erase_if(pair.to_server.queue, [&](const auto& message) { return message.peer == lost; });
  pair.stripes[lost] = 99; // its new connection
  for (int i = 0; i < 200 && pair.to_server.resets.empty(); ++i)
    pair.step();
  EXPECT_EQ(std::count(pair.to_server.resets.begin(), pair.to_server.resets.end(), kPeer), 1);
  std::erase_if(pair.to_server.queue, [&](const auto& message) {
    return !std::holds_alternative<Ping>(*decode(message.header)); // of the old connections
  });
  pair.to_client.queue.clear();
  ++pair.connection;
  pair.stripes.clear();
  for (int i = 0; i < 400 && pair.handler.calls.empty(); ++i)
    pair.step();
  ASSERT_EQ(pair.handler.calls.size(), 1u);
  EXPECT_TRUE(
      std::equal(tensors[0].begin(), tensors[0].end(), pair.handler.calls.front().bytes.begin()));
}

TEST(RpcStripes, OnlyTheSameKeyMayJoin) {
  struct TwoCallers final : Link {
    Sent send(PeerId, ByteView, const Chunk&) override {
      ++sent;
      return Sent::kAccepted;
    }
    std::string_view caller(PeerId peer) const override { return peer == 3 ? "another" : "one"; }
    size_t sent = 0;
  } link;
  TestHandler handler;
  PlainAllocator allocator;
  Server server(link, handler, allocator, 1);
  server.on_frames(kSecond, 1, encode(Ping{}), {});
  server.on_frames(kSecond, 2, encode(Join{RequestId{1}, 1}), {});
  EXPECT_EQ(link.sent, 2u);
  server.on_frames(kSecond, 3, encode(Join{RequestId{2}, 1}), {});
  server.on_frames(kSecond, 4, encode(Join{RequestId{3}, 77}), {});
  server.on_frames(kSecond, 1, encode(Join{RequestId{4}, 1}), {});
  server.on_frames(kSecond, 1, encode(Join{RequestId{5}, 2}), {});
  EXPECT_EQ(link.sent, 2u);
  EXPECT_EQ(server.counters().bad_frames, 4u);
}

TEST(RpcStripes, APieceSetTakesEveryPieceOnceAndNothingElse) {
  const std::vector<TensorMeta> tensors{bytes_meta(Limits::kChunkBytes + 1), bytes_meta(0),
                                        bytes_meta(5)};
  PieceSet pieces(tensors);
  EXPECT_EQ(pieces.first(), Limits::kChunkBytes);
  const uint64_t last = align_up(Limits::kChunkBytes + 1);
  EXPECT_EQ(pieces.take(last, 5), PieceSet::Taken::kNew);
  EXPECT_EQ(pieces.take(last, 5), PieceSet::Taken::kRepeated);
  EXPECT_EQ(pieces.take(last, 4), PieceSet::Taken::kWrong);
  EXPECT_EQ(pieces.take(0, 1), PieceSet::Taken::kWrong);
  EXPECT_EQ(pieces.take(Limits::kChunkBytes, 1), PieceSet::Taken::kNew);
  EXPECT_FALSE(pieces.done());
  EXPECT_EQ(pieces.take(0, Limits::kChunkBytes), PieceSet::Taken::kNew);
  EXPECT_TRUE(pieces.done());
  EXPECT_EQ(pieces.received(), Limits::kChunkBytes + 6);
  EXPECT_TRUE(PieceSet(std::vector{bytes_meta(0)}).done());
}

TEST(RpcStripes, CreditGrowsToItsMostAndNeverPastTheStream) {
  const uint64_t total = Limits::kCallBytes;
  CreditWindow window(total);
  uint64_t limit = window.grant(1);
  EXPECT_EQ(limit, 1 + 2 * Limits::kCreditBytes);
  uint64_t widest = 0;
  for (uint64_t received = 1; received < total; received += Limits::kChunkBytes) {
    if (const uint64_t more = window.grant(received)) {
      EXPECT_GT(more, limit);
      limit = more;
    }
    ASSERT_GE(limit, std::min(received + Limits::kChunkBytes, total)); // never stalls for good
    widest = std::max(widest, limit - received);
  }
  EXPECT_EQ(limit, total);
  EXPECT_EQ(widest, Limits::kCreditMostBytes);
  EXPECT_EQ(CreditWindow(Limits::kCreditBytes).grant(Limits::kCreditBytes / 2), 0u);
}

} // namespace
} // namespace lah::rpc
