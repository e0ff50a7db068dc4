#include "batching_fixture.hpp"

namespace lah::batching {
namespace {

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

} // namespace
} // namespace lah::batching
