// Waiting for calls: all of them, or k_min answers per token.
#include <gtest/gtest.h>

#include <thread>

#include "net/call_group.hpp"
#include "net/system.hpp"
#include "rpc/coded_tensors.hpp"

namespace lah::net {
namespace {

std::shared_ptr<CallGroup> group_of(size_t calls, std::vector<float>* out = nullptr) {
  std::vector<GroupedCall> specs(calls);
  if (out != nullptr)
    for (size_t i = 0; i < calls; ++i)
      specs[i].outputs = {
          {{DType::kFloat32, rpc::Codec::kRaw, {1}, 4}, reinterpret_cast<std::byte*>(&(*out)[i])}};
  return std::make_shared<CallGroup>(std::move(specs));
}

const rpc::Outcome kOk{};
const rpc::Outcome kFailed{Error{ErrorCode::kPeerUnreachable, "gone"}};

// Two tokens, k = 2: calls 0 and 1 hold a row of token 0, calls 1 and 2 a row of token 1.
struct QuorumTest : testing::Test {
  bool decided() { // without ever waiting for time to pass
    return group->wait(clock, clock.now(), plan);
  }
  SystemClock clock;
  std::shared_ptr<CallGroup> group = group_of(3);
  const std::array<int32_t, 4> source{0, 1, 2, 3};
  WaitPlan plan{1, 0, source.data(), 2, 2, {0, 1, 3, 4}};
};

TEST_F(QuorumTest, EveryTokenNeedsItsAnswers) {
  EXPECT_FALSE(decided());
  group->sink(0).on_done(kOk);
  EXPECT_FALSE(decided()); // token 1 has none
  group->sink(2).on_done(kOk);
  EXPECT_TRUE(decided());
}

TEST_F(QuorumTest, ATokenThatCannotGetItsAnswersIsNotWaitedFor) {
  group->sink(0).on_done(kOk);
  group->sink(1).on_done(kFailed);
  EXPECT_FALSE(decided());
  group->sink(2).on_done(kFailed);
  EXPECT_TRUE(decided());
}

TEST_F(QuorumTest, KMinOfTwoWaitsForBoth) {
  plan.k_min = 2;
  group->sink(1).on_done(kOk);
  group->sink(0).on_done(kOk);
  EXPECT_FALSE(decided());
  group->sink(2).on_done(kFailed); // token 1 can only have one answer now
  EXPECT_TRUE(decided());
}

TEST_F(QuorumTest, FewerExpertsThanKMinAreStillWaitedFor) {
  plan.k_min = 3;
  group->sink(1).on_done(kOk);
  group->sink(2).on_done(kOk);
  EXPECT_FALSE(decided()); // token 0 still has an open call
  group->sink(0).on_done(kOk);
  EXPECT_TRUE(decided());
}

TEST_F(QuorumTest, StragglersGetTheirTimeout) {
  plan.timeout_after_k_min = 50 * kMillisecond;
  group->sink(1).on_done(kOk); // an answer for each token
  EXPECT_FALSE(decided());
  const Time start = clock.now();
  EXPECT_TRUE(group->wait(clock, clock.now() + 20 * kSecond, plan));
  EXPECT_LT(clock.now() - start, 10 * kSecond);
}

TEST_F(QuorumTest, WithoutKMinEveryCallIsWaitedFor) {
  plan.k_min = 0;
  group->sink(0).on_done(kOk);
  group->sink(1).on_done(kFailed);
  EXPECT_FALSE(decided());
  group->sink(2).on_done(kOk);
  EXPECT_TRUE(decided());
  EXPECT_EQ(group->outcome(1).error.code, ErrorCode::kPeerUnreachable);
}

TEST(CallGroup, LookingEndsWithTheLastCallOrAtItsTime) {
  const SystemClock clock;
  const auto group = group_of(2);
  const Time start = clock.now();
  EXPECT_FALSE(group->look(clock, start + kMillisecond));
  EXPECT_GE(clock.now() - start, kMillisecond);
  group->sink(0).on_done(kOk);
  EXPECT_FALSE(group->look(clock, 0));
  std::thread network([&] { group->sink(1).on_done(kFailed); });
  EXPECT_TRUE(group->look(clock, clock.now() + 20 * kSecond));
  network.join();
  EXPECT_TRUE(group->look(clock, 0));
  EXPECT_FALSE(group->close(kFailed.error)); // nothing was open
  EXPECT_EQ(group->outcome(0).error.code, ErrorCode::kNone);
}

TEST(CallGroup, ResultsOfOtherShapesAreRefused) {
  std::vector<float> out(1, -1.0f);
  const auto group = group_of(1, &out);
  rpc::ResultMessage result;
  result.tensors = {{DType::kFloat32, rpc::Codec::kRaw, {2}, 8}};
  EXPECT_FALSE(group->sink(0).on_result(result));
  result.tensors = {{DType::kInt32, rpc::Codec::kRaw, {1}, 4}};
  EXPECT_FALSE(group->sink(0).on_result(result));
  result.tensors = {};
  EXPECT_FALSE(group->sink(0).on_result(result));
  result.tensors = {{DType::kFloat32, rpc::Codec::kRaw, {1}, 4}};
  EXPECT_TRUE(group->sink(0).on_result(result));
}

TEST(CallGroup, AnswersOfUnknownLengthAreCollectedUpToTheirLimit) {
  std::vector<GroupedCall> specs(1);
  specs[0].collect = 100;
  CallGroup group(std::move(specs));
  rpc::ResultMessage result;
  result.tensors = {{DType::kUInt8, rpc::Codec::kRaw, {101}, 101}};
  EXPECT_FALSE(group.sink(0).on_result(result));
  result.tensors = {{DType::kUInt8, rpc::Codec::kRaw, {3}, 3}};
  EXPECT_TRUE(group.sink(0).on_result(result));
  EXPECT_EQ(group.collected(0).capacity(), std::string().capacity()); // a promise takes no memory
  group.sink(0).on_bytes(0, as_bytes(std::string("ab")));
  group.sink(0).on_bytes(2, as_bytes(std::string("c\0\0", 3))); // with padding
  EXPECT_EQ(group.collected(0), "abc");
}

// A call with one output of `count` floats that may arrive in a codec.
struct CodedOutput {
  CodedOutput(size_t count, rpc::Codec codec) : out(count, -1.0f) {
    GroupedCall call;
    OutputTensor& output = call.outputs.emplace_back();
    output.expected = {DType::kFloat32, rpc::Codec::kRaw, {count}, 4 * count};
    output.address = reinterpret_cast<std::byte*>(out.data());
    output.codec = codec;
    const uint64_t room = rpc::with_codec(output.expected, codec).wire_bytes;
    output.wire = std::make_shared<std::byte[]>(room);
    std::vector<GroupedCall> calls;
    calls.push_back(std::move(call));
    group = std::make_shared<CallGroup>(std::move(calls));
  }
  rpc::ResultMessage result(rpc::Codec codec) const {
    rpc::ResultMessage result;
    const rpc::TensorMeta raw{DType::kFloat32, rpc::Codec::kRaw, {out.size()}, 4 * out.size()};
    result.tensors = {rpc::with_codec(raw, codec)};
    result.total_bytes = rpc::stream_bytes(result.tensors);
    return result;
  }
  // The stream of a result of these values.
  static Buffer stream(rpc::Codec codec, const std::vector<float>& values) {
    Buffer wire(codecs::codec_bytes(codec, DType::kFloat32, values.size()));
    codecs::encode(codec, std::as_bytes(std::span(values)), wire);
    wire.resize(align_up(wire.size()));
    return wire;
  }
  std::vector<float> out;
  std::shared_ptr<CallGroup> group;
};

TEST(CallGroup, LossyResultsAreDecodedWhenItIsClosed) {
  CodedOutput call(300, rpc::Codec::kInt8Block);
  std::vector<float> values(300);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(i) / 100;
  const Buffer stream = CodedOutput::stream(rpc::Codec::kInt8Block, values);
  ASSERT_TRUE(call.group->sink(0).on_result(call.result(rpc::Codec::kInt8Block)));
  call.group->sink(0).on_bytes(0, ByteView(stream).first(100));
  call.group->sink(0).on_bytes(100, ByteView(stream).subspan(100));
  call.group->sink(0).on_done(kOk);
  EXPECT_EQ(call.out[7], -1.0f);
  EXPECT_FALSE(call.group->close({ErrorCode::kCancelled, "enough"}));
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_NEAR(call.out[i], values[i], values.back() / 252);
  EXPECT_EQ(call.group->wire_bytes(0), stream.size());
}

TEST(CallGroup, LossyResultsOfFailedCallsAreNotDecoded) {
  CodedOutput call(8, rpc::Codec::kBFloat16);
  ASSERT_TRUE(call.group->sink(0).on_result(call.result(rpc::Codec::kBFloat16)));
  call.group->sink(0).on_bytes(0, CodedOutput::stream(rpc::Codec::kBFloat16, std::vector(8, 2.0f)));
  call.group->sink(0).on_done(kFailed);
  call.group->close({ErrorCode::kCancelled, "enough"});
  EXPECT_EQ(call.out, std::vector(8, -1.0f));
}

TEST(CallGroup, ResultsMayBeRawButInNoCodecThatWasNotAskedFor) {
  CodedOutput call(8, rpc::Codec::kBFloat16);
  EXPECT_FALSE(call.group->sink(0).on_result(call.result(rpc::Codec::kInt8Block)));
  EXPECT_FALSE(call.group->sink(0).on_result(call.result(rpc::Codec::kFloat16)));
  ASSERT_TRUE(call.group->sink(0).on_result(call.result(rpc::Codec::kRaw)));
  call.group->sink(0).on_bytes(0, CodedOutput::stream(rpc::Codec::kRaw, std::vector(8, 2.0f)));
  EXPECT_EQ(call.out, std::vector(8, 2.0f));
}

TEST(CallGroup, NothingIsWrittenOnceItIsClosed) {
  std::vector<float> out(1, -1.0f);
  const auto group = group_of(1, &out);
  rpc::ResultMessage result;
  result.tensors = {{DType::kFloat32, rpc::Codec::kRaw, {1}, 4}};
  ASSERT_TRUE(group->sink(0).on_result(result));
  const std::array<float, 16> stream{5.0f};
  std::atomic<bool> closed{false};
  std::thread network([&] {
    while (!closed.load())
      group->sink(0).on_bytes(0, std::as_bytes(std::span(stream)));
    for (int i = 0; i < 1000; ++i)
      group->sink(0).on_bytes(0, std::as_bytes(std::span(stream)));
  });
  EXPECT_TRUE(group->close({ErrorCode::kCancelled, "enough"}));
  out[0] = 7.0f;
  closed = true;
  network.join();
  EXPECT_EQ(out[0], 7.0f);
  EXPECT_EQ(group->outcome(0).error.code, ErrorCode::kCancelled);
  group->sink(0).on_done(kOk); // late
  EXPECT_EQ(group->outcome(0).error.code, ErrorCode::kCancelled);
}

} // namespace
} // namespace lah::net
