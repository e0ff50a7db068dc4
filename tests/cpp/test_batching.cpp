#include <gtest/gtest.h>

#include <numeric>

#include "batching/batcher.hpp"
#include "batching/byte_pool.hpp"
#include "rpc/coded_tensors.hpp"

namespace lah::batching {
namespace {

class ManualClock final : public Clock {
public:
  Time now() const override { return now_; }
  WallMs wall_ms() const override { return 0; }
  Time now_ = kSecond;
};

struct Answers final : ReplyPort {
  struct Answer {
    rpc::CallKey key;
    std::optional<rpc::OutgoingResult> result;
    Error error;
  };
  std::vector<Answer> list;
  void reply(const rpc::CallKey& key, rpc::OutgoingResult result) override {
    list.push_back({key, std::move(result), {}});
  }
  void fail(const rpc::CallKey& key, const Error& error) override {
    list.push_back({key, std::nullopt, error});
  }
};

struct BatchingTest : testing::Test {
  BatchingTest() {
    add_pool("a", 8);
    add_pool("b", 8);
    batcher.connect(&answers);
  }

  void add_pool(const std::string& uid, uint64_t max_rows, uint64_t min_rows = 1, Duration wait = 0,
                uint32_t lane = 0) {
    PoolSpec spec;
    spec.uid = uid;
    spec.inputs = {{DType::kFloat32, {4}}, {DType::kInt64, {}}};
    spec.outputs = {{DType::kFloat32, {4}}};
    spec.max_batch_rows = max_rows;
    spec.min_batch_rows = min_rows;
    spec.min_batch_wait = wait;
    spec.lane = lane;
    batcher.add_pool(spec);
  }

  rpc::Call header(const std::string& uid, uint64_t rows, bool training = true) {
    rpc::Call call;
    call.uid = uid;
    call.method = method;
    call.training = training;
    call.tensors = {TensorSpec{DType::kFloat32, {4}}.meta(rows),
                    TensorSpec{DType::kInt64, {}}.meta(rows)};
    call.total_bytes = rpc::stream_bytes(call.tensors);
    return call;
  }

  // Every float of the request is `value`, every integer `value` too.
  rpc::CallKey submit(const std::string& uid, uint64_t rows, float value, bool training = true,
                      Duration deadline = 10 * kSecond, uint8_t priority = 0) {
    rpc::IncomingCall call;
    call.header = header(uid, rows, training);
    call.header.priority = priority;
    call.pool = *batcher.admit(call.header);
    call.key = {1, {static_cast<uint8_t>(++submitted)}};
    call.arrived = clock.now_;
    call.deadline = clock.now_ + deadline;
    call.buffer = bytes.allocate(call.header.total_bytes);
    auto* floats = reinterpret_cast<float*>(call.buffer.get());
    for (uint64_t i = 0; i < rows * 4; ++i)
      floats[i] = value;
    auto* integers = reinterpret_cast<int64_t*>(call.buffer.get() + align_up(rows * 16));
    for (uint64_t i = 0; i < rows; ++i)
      integers[i] = static_cast<int64_t>(value);
    call.bytes = {call.buffer.get(), call.header.total_bytes};
    const rpc::CallKey key = call.key;
    batcher.submit(std::move(call));
    ++clock.now_;
    return key;
  }

  Taken take(Batch& batch, uint32_t lane = 0) {
    return batcher.take(lane, slab, clock.now_, batch, needed);
  }

  // Runs the next batch; it takes so long.
  void run(Duration takes) {
    Batch batch;
    ASSERT_EQ(take(batch), Taken::kBatch);
    clock.now_ += takes;
    const std::vector<float> out(batch.rows * 4);
    batcher.finish(batch.id, {}, {std::as_bytes(std::span(out))});
  }

  ManualClock clock;
  BytePool bytes{1 << 20};
  Answers answers;
  Batcher batcher{clock, bytes};
  alignas(kTensorAlign) std::array<std::byte, 4096> slab{};
  size_t needed = 0;
  int submitted = 0;
  rpc::Method method = rpc::Method::kForward;
};

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

TEST_F(BatchingTest, PriorityGoesFirstWithinAndAcrossPools) {
  submit("a", 8, 1);
  submit("a", 8, 2, true, 10 * kSecond, 1);
  submit("b", 8, 3, true, 10 * kSecond, 2);
  for (const float expected : {3.0f, 2.0f, 1.0f}) {
    Batch batch;
    ASSERT_EQ(take(batch), Taken::kBatch);
    EXPECT_EQ(*reinterpret_cast<const float*>(slab.data()), expected);
  }
}

TEST_F(BatchingTest, AgeOvertakesPriority) {
  submit("a", 8, 1);
  clock.now_ += 3 * kAgeing;
  submit("a", 8, 2, true, 10 * kSecond, 2); // waits for the one that came 3 levels earlier
  submit("a", 8, 3, true, 10 * kSecond, 4);
  for (const float expected : {3.0f, 1.0f, 2.0f}) {
    Batch batch;
    ASSERT_EQ(take(batch), Taken::kBatch);
    EXPECT_EQ(*reinterpret_cast<const float*>(slab.data()), expected);
  }
}

TEST_F(BatchingTest, EachLaneTakesTheBatchesOfItsOwnPools) {
  add_pool("c", 8, 1, 0, 1);
  submit("a", 1, 1);
  submit("c", 1, 2);
  Batch first, second;
  ASSERT_EQ(take(first, 1), Taken::kBatch);
  EXPECT_EQ(first.pool, 2u);
  EXPECT_EQ(take(second, 1), Taken::kTimeout);
  ASSERT_EQ(take(second, 0), Taken::kBatch); // while the other still runs
  EXPECT_EQ(second.pool, 0u);
}

TEST_F(BatchingTest, RequestsThatWouldExpireInTheQueueAreRefused) {
  submit("a", 8, 1);
  run(100 * kMillisecond); // now it is known how long a batch takes
  EXPECT_EQ(batcher.wait_us(), 0u);
  for (int i = 0; i < 10; ++i)
    submit("a", 8, 1);
  EXPECT_NEAR(static_cast<double>(batcher.wait_us()), 1e6, 1e3);
  rpc::Call call = header("b", 1); // another expert of the same device
  call.deadline_ms = 1300;
  EXPECT_TRUE(batcher.admit(call));
  call.deadline_ms = 1200;
  const auto refused = batcher.admit(call);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOverloaded);
  EXPECT_NEAR(refused.error().retry_after_ms, 1000 - 480, 2);
  call.priority = 1; // goes before all of them
  EXPECT_TRUE(batcher.admit(call));
}

TEST_F(BatchingTest, WaitsCountWhatIsLeftOfTheRunningBatch) {
  submit("a", 8, 1);
  run(100 * kMillisecond);
  submit("a", 8, 1);
  Batch batch;
  ASSERT_EQ(take(batch), Taken::kBatch);
  clock.now_ += 40 * kMillisecond;
  EXPECT_NEAR(static_cast<double>(batcher.wait_us()), 60e3, 1);
  clock.now_ += 260 * kMillisecond; // 200 ms longer than expected: half as long again
  EXPECT_NEAR(static_cast<double>(batcher.wait_us()), 100e3, 1);
}

TEST_F(BatchingTest, LateResultsAreNotSentButLateUpdatesAreAnswered) {
  PoolSpec spec;
  spec.uid = "a";
  spec.method = rpc::Method::kBackward;
  spec.inputs = {{DType::kFloat32, {4}}, {DType::kInt64, {}}};
  spec.outputs = {{DType::kFloat32, {4}}};
  batcher.add_pool(spec);
  submit("a", 1, 1, true, 50);
  clock.now_ -= 1;
  run(100);
  ASSERT_EQ(answers.list.size(), 1u);
  EXPECT_EQ(answers.list[0].error.code, ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(batcher.counters().expired, 1u);
  method = rpc::Method::kBackward;
  submit("a", 1, 1, true, 50);
  run(100);
  ASSERT_EQ(answers.list.size(), 2u);
  EXPECT_TRUE(answers.list[1].result);
}

TEST(ServiceTime, LearnsTheFixedPartAndThatOfEachRow) {
  ServiceTime time;
  EXPECT_EQ(time.of(3, 100), 0);
  time.add(10, 70);
  EXPECT_EQ(time.of(1, 1000), 70); // nothing tells them apart yet
  for (uint64_t rows : {1, 100, 7, 50, 20})
    time.add(rows, static_cast<Duration>(50 + 2 * rows));
  EXPECT_EQ(time.of(2, 100), 300);
  for (int i = 0; i < 100; ++i) // slower from now on
    time.add(100, 500);
  EXPECT_NEAR(static_cast<double>(time.of(1, 100)), 500.0, 1.0);
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
