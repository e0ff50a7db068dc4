#include <numeric>

#include "batching_fixture.hpp"
#include "rpc/coded_tensors.hpp"

namespace lah::batching {
namespace {

TEST_F(BatchingTest, RequestsOfOnePoolBecomeOneContiguousBatch) {
  submit("a", 2, 1);
  submit("b", 1, 9);
  submit("a", 3, 2);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.pool, 0u); // the oldest request is there
  EXPECT_EQ(batch.rows, 5u);
  const auto* floats = reinterpret_cast<const float*>(slab.data() + batch.offsets[0]);
  const auto* integers = reinterpret_cast<const int64_t*>(slab.data() + batch.offsets[1]);
  EXPECT_EQ(batch.offsets[1] % kTensorAlign, 0u);
  for (size_t row = 0; row < 5; ++row) {
    EXPECT_EQ(floats[row * 4 + 3], row < 2 ? 1.0f : 2.0f);
    EXPECT_EQ(integers[row], row < 2 ? 1 : 2);
  }
}

TEST_F(BatchingTest, ResultsGoBackRowByRow) {
  const rpc::CallKey first = submit("a", 2, 1);
  const rpc::CallKey second = submit("a", 1, 2);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  const std::array<float, 12> out{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  batcher.finish(batch.id, {}, {std::as_bytes(std::span(out))});
  ASSERT_EQ(answers.list.size(), 2u);
  EXPECT_EQ(answers.list[0].key, first);
  EXPECT_EQ(answers.list[1].key, second);
  const auto value = [&](size_t answer, size_t i) {
    return reinterpret_cast<const float*>(answers.list[answer].result->bytes.get())[i];
  };
  EXPECT_EQ(value(0, 7), 7.0f);
  EXPECT_EQ(value(1, 0), 8.0f);
  EXPECT_EQ(answers.list[0].result->header.tensors[0].shape, (std::vector<uint64_t>{2, 4}));
  EXPECT_EQ(answers.list[0].result->header.batch_rows, 3u);
}

TEST_F(BatchingTest, RequestsAndResultsTravelInTheCodecsOfTheirCalls) {
  rpc::IncomingCall call;
  call.header = header("a", 2);
  call.header.tensors[0] = rpc::with_codec(call.header.tensors[0], rpc::Codec::kFloat16);
  call.header.result_codec = rpc::Codec::kBFloat16;
  call.pool = *batcher.admit(call.header);
  call.key = {1, {9}};
  call.deadline = clock.now_ + kSecond;
  call.buffer = bytes.allocate(128);
  call.bytes = {call.buffer.get(), 128};
  const std::array<float, 8> x{0.5f, 1, 2, 3, 4, 5, 6, 7};
  const std::array<int64_t, 2> ids{3, 4};
  MutableByteView stream(call.buffer.get(), 128);
  ASSERT_TRUE(codecs::encode(rpc::Codec::kFloat16, std::as_bytes(std::span(x)), stream.first(16)));
  std::memcpy(stream.data() + 64, ids.data(), sizeof(ids));
  batcher.submit(std::move(call));
  submit("a", 1, 8);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  const auto* floats = reinterpret_cast<const float*>(slab.data() + batch.offsets[0]);
  EXPECT_EQ(std::vector<float>(floats, floats + 8), std::vector<float>(x.begin(), x.end()));
  EXPECT_EQ(floats[8], 8.0f); // the row of the second request
  EXPECT_EQ(reinterpret_cast<const int64_t*>(slab.data() + batch.offsets[1])[1], 4);
  batcher.finish(batch.id, {}, {ByteView(slab).subspan(batch.offsets[0], 48)});
  ASSERT_EQ(answers.list.size(), 2u);
  const rpc::OutgoingResult& lossy = *answers.list[0].result;
  EXPECT_EQ(lossy.header.tensors[0].codec, rpc::Codec::kBFloat16);
  EXPECT_EQ(lossy.header.tensors[0].wire_bytes, 16u);
  std::array<float, 8> back{};
  ASSERT_TRUE(codecs::decode(rpc::Codec::kBFloat16, {lossy.bytes.get(), 16},
                             std::as_writable_bytes(std::span(back))));
  EXPECT_EQ(back, x);
  EXPECT_EQ(answers.list[1].result->header.tensors[0].codec, rpc::Codec::kRaw);
}

TEST_F(BatchingTest, BatchesNeverExceedTheirLimit) { // the original overshoots by one request
  submit("a", 5, 1);
  submit("a", 4, 2);
  submit("a", 4, 3);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.rows, 5u);
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.rows, 8u);
  EXPECT_EQ(take(batch), Taken::kTimeout);
}

TEST_F(BatchingTest, OldestPoolGoesFirst) { // the original serves the newest first
  submit("b", 1, 1);
  submit("a", 1, 2);
  submit("b", 1, 3);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.pool, 1u);
  EXPECT_EQ(batch.rows, 2u);
}

TEST_F(BatchingTest, TrainingAndEvaluationNeverShareABatch) {
  submit("a", 1, 1, true);
  submit("a", 1, 2, false);
  submit("a", 2, 3, true);
  submit("a", 3, 4, false);
  for (const bool training : {true, false}) {
    Batch batch;
    ASSERT_EQ(take(batch), Taken::kBatch);
    EXPECT_EQ(batch.training, training);
    EXPECT_EQ(batch.request_rows,
              (training ? std::vector<uint64_t>{1, 2} : std::vector<uint64_t>{1, 3}));
  }
}

TEST_F(BatchingTest, ExpiredRequestsAreAnsweredAndNotComputed) {
  const rpc::CallKey late = submit("a", 1, 1, true, 5);
  submit("a", 1, 2);
  clock.now_ += 10;
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.rows, 1u);
  ASSERT_EQ(answers.list.size(), 1u);
  EXPECT_EQ(answers.list[0].key, late);
  EXPECT_EQ(answers.list[0].error.code, ErrorCode::kDeadlineExceeded);
}

TEST_F(BatchingTest, SmallBatchesWaitForCompanyOnlySoLong) {
  add_pool("c", 8, 4, 100);
  submit("c", 1, 1);
  Batch batch;
  EXPECT_EQ(take(batch), Taken::kTimeout);
  submit("c", 3, 1);
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.rows, 4u);
  submit("c", 1, 1);
  clock.now_ += 100;
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.rows, 1u);
}

TEST_F(BatchingTest, SchemaErrorsSayWhatWasExpectedAndWhatCame) {
  const auto message = [&](rpc::Call call) {
    const auto admitted = batcher.admit(call);
    EXPECT_FALSE(admitted);
    return admitted.error().message;
  };
  rpc::Call wrong = header("a", 2);
  wrong.tensors.pop_back();
  EXPECT_NE(message(wrong).find("expected 2 tensors, got 1"), std::string::npos);
  wrong = header("a", 2);
  wrong.tensors[0] = TensorSpec{DType::kFloat32, {5}}.meta(2);
  EXPECT_NE(message(wrong).find("expected float32[*, 4], got float32[2, 5]"), std::string::npos);
  wrong.tensors[0] = TensorSpec{DType::kFloat16, {4}}.meta(2);
  EXPECT_NE(message(wrong).find("got float16[2, 4]"), std::string::npos);
  wrong = header("a", 2);
  wrong.tensors[1] = TensorSpec{DType::kInt64, {}}.meta(3);
  EXPECT_NE(message(wrong).find("expected 2 rows"), std::string::npos);
  wrong.tensors[0].shape.clear();
  EXPECT_NE(message(wrong).find("got float32[]"), std::string::npos);
  EXPECT_NE(message(header("a", 0)).find("expected 1 to 8 rows"), std::string::npos);
  EXPECT_NE(message(header("a", 9)).find("expected 1 to 8 rows"), std::string::npos);
  EXPECT_EQ(batcher.admit(header("z", 1)).error().code, ErrorCode::kExpertNotFound);
}

TEST_F(BatchingTest, AnErrorReachesEveryRequestOfItsBatchAndNoOther) {
  submit("a", 1, 1);
  submit("a", 1, 2);
  submit("b", 1, 3);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  batcher.fail(batch.id, {}, {ErrorCode::kExpertError, "boom", "trace", 0});
  ASSERT_EQ(answers.list.size(), 2u);
  EXPECT_EQ(answers.list[1].error.detail, "trace");
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.pool, 1u);
}

TEST_F(BatchingTest, RequestsOfABatchAreAnsweredOneByOne) {
  const rpc::CallKey first = submit("a", 2, 1);
  const rpc::CallKey second = submit("a", 1, 2);
  const rpc::CallKey third = submit("a", 3, 3);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.request_rows, (std::vector<uint64_t>{2, 1, 3}));
  batcher.fail(batch.id, {1}, {ErrorCode::kExpertError, "boom", "trace", 0});
  ASSERT_EQ(answers.list.size(), 1u);
  EXPECT_EQ(answers.list[0].key, second);
  std::array<float, 20> out{};
  std::iota(out.begin(), out.end(), 0.0f);
  batcher.finish(batch.id, {0, 2}, {std::as_bytes(std::span(out))});
  ASSERT_EQ(answers.list.size(), 3u);
  EXPECT_EQ(answers.list[1].key, first);
  EXPECT_EQ(answers.list[2].key, third);
  EXPECT_EQ(reinterpret_cast<const float*>(answers.list[2].result->bytes.get())[0], 8.0f);
  EXPECT_EQ(answers.list[2].result->header.batch_rows, 6u);
  batcher.finish(batch.id, {0, 1, 99}, {std::as_bytes(std::span(out))}); // each once
  batcher.fail(batch.id, {}, {ErrorCode::kExpertError, "late", "", 0});
  EXPECT_EQ(answers.list.size(), 3u);
}

TEST_F(BatchingTest, ASmallSlabKeepsTheBatchForALargerOne) {
  submit("a", 8, 1);
  Batch batch;
  EXPECT_EQ(batcher.take(0, MutableByteView(slab).first(64), clock.now_, batch, needed),
            Taken::kSlabTooSmall);
  EXPECT_EQ(needed, 192u);
  EXPECT_EQ(take(batch), Taken::kBatch);
  EXPECT_EQ(batch.rows, 8u);
}

TEST_F(BatchingTest, CancelledRequestsLeaveTheQueue) {
  const rpc::CallKey key = submit("a", 1, 1);
  batcher.cancel(key);
  ASSERT_EQ(answers.list.size(), 1u);
  EXPECT_EQ(answers.list[0].error.code, ErrorCode::kCancelled);
  Batch batch;
  EXPECT_EQ(take(batch), Taken::kTimeout);
}

TEST_F(BatchingTest, CancelledRequestsThatRunGetNoResult) {
  const rpc::CallKey key = submit("a", 1, 1);
  submit("a", 1, 2);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  batcher.cancel(key);
  EXPECT_TRUE(answers.list.empty());
  const std::array<float, 8> out{0, 0, 0, 0, 5, 5, 5, 5};
  batcher.finish(batch.id, {}, {std::as_bytes(std::span(out))});
  ASSERT_EQ(answers.list.size(), 2u);
  EXPECT_EQ(answers.list[0].error.code, ErrorCode::kCancelled);
  EXPECT_EQ(reinterpret_cast<const float*>(answers.list[1].result->bytes.get())[0], 5.0f);
  EXPECT_EQ(batcher.counters().expired, 0u);
}

TEST_F(BatchingTest, StoppingAnswersEverybody) {
  submit("a", 1, 1);
  submit("b", 1, 1);
  batcher.stop();
  EXPECT_EQ(answers.list.size(), 2u);
  Batch batch;
  EXPECT_EQ(take(batch), Taken::kStopped);
  EXPECT_EQ(batcher.admit(header("a", 1)).error().code, ErrorCode::kShuttingDown);
}

TEST_F(BatchingTest, FullQueuesRefuse) {
  PoolSpec spec;
  spec.uid = "tiny";
  spec.inputs = {{DType::kFloat32, {4}}, {DType::kInt64, {}}};
  spec.queue_limit = 1;
  batcher.add_pool(spec);
  submit("tiny", 1, 1);
  const auto admitted = batcher.admit(header("tiny", 1));
  ASSERT_FALSE(admitted);
  EXPECT_EQ(admitted.error().code, ErrorCode::kOverloaded);
  EXPECT_GT(admitted.error().retry_after_ms, 0u);
}

TEST(BytePool, RecyclesAndSurvivesItsOwnEnd) {
  SharedBytes late;
  {
    BytePool pool(1 << 20);
    std::byte* first = pool.allocate(100'000).get();
    EXPECT_EQ(pool.allocate(90'000).get(), first); // same size class, still warm
    late = pool.allocate(10);
  }
  late.reset();
}

} // namespace
} // namespace lah::batching
