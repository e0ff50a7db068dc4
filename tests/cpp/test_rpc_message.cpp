#include <gtest/gtest.h>

#include "base/rng.hpp"
#include "rpc/message.hpp"
#include "rpc/stream.hpp"
#include "wire/writer.hpp"

namespace lah::rpc {
namespace {

Call sample_call() {
  Call call;
  call.id = {1, 2, 3};
  call.uid = "expert.3.14";
  call.method = Method::kBackward;
  call.deadline_ms = 1234;
  call.training = false;
  call.priority = 7;
  call.attempt = 2;
  call.tensors = {{DType::kFloat32, Codec::kRaw, {3, 5}, 60},
                  {DType::kInt64, Codec::kRaw, {3}, 24}};
  call.total_bytes = stream_bytes(call.tensors);
  return call;
}

TEST(RpcMessage, CallKeepsEveryField) {
  const Call call = sample_call();
  const auto decoded = decode(encode(call));
  ASSERT_TRUE(decoded);
  const Call& got = std::get<Call>(*decoded);
  EXPECT_EQ(got.id, call.id);
  EXPECT_EQ(got.uid, call.uid);
  EXPECT_EQ(got.method, call.method);
  EXPECT_EQ(got.deadline_ms, call.deadline_ms);
  EXPECT_EQ(got.training, call.training);
  EXPECT_EQ(got.priority, call.priority);
  EXPECT_EQ(got.attempt, call.attempt);
  EXPECT_EQ(got.tensors, call.tensors);
  EXPECT_EQ(got.total_bytes, 128u);
}

TEST(RpcMessage, EveryKindComesBackAsItself) {
  const RequestId id{9};
  const std::vector<Message> messages{
      sample_call(),
      Data{id, 77},
      Credit{id, 99, 44},
      Cancel{id},
      ResultMessage{id, 64, 5, 6, 7, {{DType::kInt8, Codec::kRaw, {3}, 3}}},
      ErrorMessage{id, ErrorCode::kExpertError, 12, "boom"},
      Ping{id},
      Pong{id, 1ull << 60},
      GoAway{id},
      Join{id, 1ull << 60}};
  for (const Message& message : messages) {
    const Buffer bytes = encode(message);
    EXPECT_LE(bytes.size(), Limits::kHeaderBytes);
    const auto decoded = decode(bytes);
    ASSERT_TRUE(decoded) << message.index();
    EXPECT_EQ(decoded->index(), message.index());
  }
}

TEST(RpcMessage, LargestHeaderFits) {
  Call call = sample_call();
  call.uid = std::string(Limits::kUidBytes, 'x');
  call.tensors.assign(Limits::kTensors, {DType::kBFloat16, Codec::kRaw, {1000, 1000}, 2'000'000});
  call.total_bytes = stream_bytes(call.tensors);
  const Buffer bytes = encode(call);
  EXPECT_LE(bytes.size(), Limits::kHeaderBytes);
  EXPECT_TRUE(decode(bytes));
}

TEST(RpcMessage, RefusesWhatDoesNotAddUp) {
  Call call = sample_call();
  call.total_bytes += 64; // not the size of its tensors
  EXPECT_FALSE(decode(encode(call)));
  call = sample_call();
  call.tensors[0].wire_bytes = 61;
  EXPECT_FALSE(decode(encode(call)));
  call = sample_call();
  call.tensors[0].shape = {uint64_t{1} << 20, uint64_t{1} << 20};
  EXPECT_FALSE(decode(encode(call)));
  call = sample_call();
  call.deadline_ms = Limits::kDeadlineMs + 1;
  EXPECT_FALSE(decode(encode(call)));
  call = sample_call();
  call.uid = std::string(Limits::kUidBytes + 1, 'x');
  EXPECT_FALSE(decode(encode(call)));
}

TEST(RpcMessage, EveryTruncationIsRefused) {
  const Buffer bytes = encode(sample_call());
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(decode(ByteView(bytes).first(size))) << size;
}

TEST(RpcMessage, RandomDamageNeverCrashesAndNeverBreaksItsOwnRules) {
  SeededRng rng(3);
  const Buffer good = encode(sample_call());
  for (int i = 0; i < 20'000; ++i) {
    Buffer bytes = good;
    for (uint64_t flips = 1 + rng.below(4); flips > 0; --flips)
      bytes[rng.below(bytes.size())] = static_cast<std::byte>(rng.below(256));
    const auto decoded = decode(bytes);
    if (decoded && std::holds_alternative<Call>(*decoded)) {
      const Call& call = std::get<Call>(*decoded);
      EXPECT_LE(call.total_bytes, Limits::kCallBytes);
      EXPECT_EQ(call.total_bytes, stream_bytes(call.tensors));
    }
  }
}

TEST(RpcMessage, NewerPeersMayAppendFields) {
  wire::Writer out;
  const RequestId id{5};
  out.array(6).u64(kVersion).u64(static_cast<uint64_t>(Kind::kPing)).bin(as_bytes(id)).u64(0);
  out.str("future").u64(1);
  const auto decoded = decode(out.view());
  ASSERT_TRUE(decoded);
  EXPECT_EQ(std::get<Ping>(*decoded).id, id);
}

TEST(StreamCursor, PiecesCoverEveryTensorInOrderWithinChunks) {
  const std::vector<TensorMeta> tensors{
      {DType::kUInt8, Codec::kRaw, {3'000'001}, 3'000'001},
      {DType::kUInt8, Codec::kRaw, {0}, 0},
      {DType::kUInt8, Codec::kRaw, {5}, 5},
  };
  StreamCursor cursor(tensors);
  std::vector<uint64_t> seen(3, 0);
  while (!cursor.done()) {
    const Piece piece = cursor.next();
    EXPECT_LE(piece.size, Limits::kChunkBytes);
    EXPECT_GT(piece.size, 0u);
    EXPECT_EQ(piece.begin, seen[piece.tensor]);
    EXPECT_EQ(piece.offset, (piece.tensor == 0 ? 0 : align_up(3'000'001)) + piece.begin);
    seen[piece.tensor] += piece.size;
    cursor.advance(piece.size);
  }
  EXPECT_EQ(seen, (std::vector<uint64_t>{3'000'001, 0, 5}));
}

TEST(StreamCursor, SmallStreamsTravelWhole) {
  StreamCursor cursor({{DType::kUInt8, Codec::kRaw, {5}, 5}, {DType::kUInt8, Codec::kRaw, {7}, 7}});
  EXPECT_EQ(cursor.next().size, 128u);
  cursor.advance(128);
  EXPECT_TRUE(cursor.done());
  EXPECT_TRUE(StreamCursor(std::vector<TensorMeta>{}).done());
}

} // namespace
} // namespace lah::rpc
