// Fetching an expert: a call without tensors whose result is as long as the expert, and calls
// without tensors where some are due.
#include <gtest/gtest.h>

#include "batching/batcher.hpp"
#include "batching/byte_pool.hpp"

namespace lah::batching {
namespace {

class StoppedClock final : public Clock {
public:
  Time now() const override { return kSecond; }
  WallMs wall_ms() const override { return 0; }
};

struct Answers final : ReplyPort {
  std::vector<rpc::OutgoingResult> results;
  std::vector<Error> errors;
  void reply(const rpc::CallKey&, rpc::OutgoingResult result) override {
    results.push_back(std::move(result));
  }
  void fail(const rpc::CallKey&, const Error& error) override { errors.push_back(error); }
};

struct StateTest : testing::Test {
  StateTest() {
    for (const std::string uid : {"open", "closed"}) {
      batcher.add_pool({.uid = uid,
                        .method = rpc::Method::kForward,
                        .inputs = {{DType::kFloat32, {4}}},
                        .outputs = {{DType::kFloat32, {4}}}});
      batcher.set_description(uid, "{}");
    }
    state_pool = batcher.add_pool({.uid = "open",
                                   .method = rpc::Method::kState,
                                   .inputs = {},
                                   .outputs = {{DType::kUInt8, {}}},
                                   .max_batch_rows = 1});
    batcher.connect(&answers);
  }

  static rpc::Call header(const std::string& uid, rpc::Method method = rpc::Method::kState) {
    rpc::Call call;
    call.uid = uid;
    call.method = method;
    return call;
  }

  ErrorCode refusal(const rpc::Call& call) {
    const auto pool = batcher.admit(call);
    return pool ? ErrorCode::kNone : pool.error().code;
  }

  void fetch(size_t bytes) {
    rpc::IncomingCall call;
    call.header = header("open");
    call.pool = *batcher.admit(call.header);
    batcher.submit(std::move(call));
    Batch batch;
    size_t needed = 0;
    ASSERT_EQ(batcher.take(0, {}, clock.now(), batch, needed), Taken::kBatch);
    EXPECT_EQ(batch.pool, state_pool);
    EXPECT_EQ(batch.rows, 1u);
    EXPECT_TRUE(batch.offsets.empty());
    const std::vector<std::byte> state(bytes, std::byte{7});
    batcher.finish(batch.id, {}, {state});
  }

  StoppedClock clock;
  BytePool memory{1 << 20};
  Answers answers;
  Batcher batcher{clock, memory};
  uint32_t state_pool = 0;
};

TEST_F(StateTest, AResultIsAsLongAsTheExpert) {
  for (const size_t bytes : {size_t{100}, size_t{70'001}}) {
    fetch(bytes);
    const rpc::OutgoingResult& result = answers.results.back();
    ASSERT_EQ(result.header.tensors.size(), 1u);
    EXPECT_EQ(result.header.tensors[0].text(), "uint8[" + std::to_string(bytes) + "]");
    EXPECT_EQ(result.bytes.get()[bytes - 1], std::byte{7});
    EXPECT_EQ(result.bytes.get()[bytes], std::byte{0}); // padding
  }
}

TEST_F(StateTest, OnlyWhatIsPermittedIsGiven) {
  EXPECT_EQ(refusal(header("open")), ErrorCode::kNone);
  EXPECT_EQ(refusal(header("closed")), ErrorCode::kNotPermitted);
  EXPECT_EQ(refusal(header("nobody")), ErrorCode::kExpertNotFound);
  rpc::Call call = header("open");
  call.tensors = {TensorSpec{DType::kFloat32, {4}}.meta(2)};
  EXPECT_EQ(refusal(call), ErrorCode::kSchemaMismatch);
}

TEST_F(StateTest, CallsWithoutTheirTensorsAreRefused) {
  EXPECT_EQ(refusal(header("open", rpc::Method::kForward)), ErrorCode::kSchemaMismatch);
  EXPECT_EQ(refusal(header("open", rpc::Method::kBackward)), ErrorCode::kExpertNotFound);
  rpc::Call call = header("open", rpc::Method::kForward);
  call.tensors = {rpc::TensorMeta{DType::kFloat32, rpc::Codec::kRaw, {}, 4}}; // without a row count
  EXPECT_EQ(refusal(call), ErrorCode::kSchemaMismatch);
}

TEST_F(StateTest, SlowReadersOfExpertsAreLimited) {
  for (size_t i = 0; i < Limits::kStatesLent; ++i)
    fetch(100);
  EXPECT_EQ(refusal(header("open")), ErrorCode::kOverloaded);
  answers.results.pop_back(); // the reader has it
  EXPECT_EQ(refusal(header("open")), ErrorCode::kNone);
}

TEST_F(StateTest, WakingEndsOneWait) {
  Batch batch;
  size_t needed = 0;
  batcher.wake();
  EXPECT_EQ(batcher.take(0, {}, clock.now() + 3600 * kSecond, batch, needed), Taken::kTimeout);
}

} // namespace
} // namespace lah::batching
