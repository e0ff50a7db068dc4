#include "batching/local_calls.hpp"
#include "batching_fixture.hpp"

namespace lah::batching {
namespace {

struct LendingTest : BatchingTest {
  static constexpr uint64_t kRows = (2 << 20) / 16; // 2 MiB

  LendingTest() {
    PoolSpec spec;
    spec.uid = "big";
    spec.inputs = spec.outputs = {{DType::kFloat32, {4}}};
    spec.max_batch_rows = 2 * kRows;
    batcher.add_pool(spec);
  }

  // `shift` bytes off an aligned address.
  const std::byte* submit_big(rpc::PeerId peer, size_t shift = 0) {
    rpc::IncomingCall call;
    call.header.uid = "big";
    call.header.tensors = {TensorSpec{DType::kFloat32, {4}}.meta(kRows)};
    call.header.total_bytes = rpc::stream_bytes(call.header.tensors);
    call.pool = *batcher.admit(call.header);
    call.key = {peer, {}};
    call.buffer = bytes.allocate(call.header.total_bytes + shift);
    call.bytes = {call.buffer.get() + shift, call.header.total_bytes};
    const std::byte* data = call.bytes.data();
    batcher.submit(std::move(call));
    return data;
  }
};

TEST_F(LendingTest, LargeLoneRequestsAreLentUntilTheirOwnerIsDropped) {
  const std::byte* data = submit_big(1);
  Batch batch;
  ASSERT_EQ(batcher.take(0, {}, clock.now_, batch, needed), Taken::kBatch); // no slab needed
  EXPECT_EQ(batch.lent.data(), data);
  EXPECT_EQ(batch.offsets, std::vector<uint64_t>{0});
  batch.lent[0] = std::byte{7};
  const auto keep = std::make_shared<int>(0);
  batcher.finish(batch.id, {}, {ByteView(batch.lent)}, keep);
  ASSERT_EQ(answers.list.size(), 1u);
  EXPECT_FALSE(answers.list[0].result->bytes);
  EXPECT_EQ(answers.list[0].result->tensors[0].data(), data);
  EXPECT_GT(keep.use_count(), 1); // whoever sends it holds it
  answers.list.clear();
  EXPECT_EQ(keep.use_count(), 1);
  EXPECT_EQ(batch.lent[0], std::byte{7}); // the request is the batch's owner's
  EXPECT_EQ(batcher.counters().lent, 2u);
}

TEST_F(LendingTest, UnalignedAndSharedBatchesAreCopied) {
  Buffer memory((4 << 20) + kTensorAlign);
  const auto start = align_up(reinterpret_cast<uintptr_t>(memory.data()));
  const MutableByteView large(reinterpret_cast<std::byte*>(start), 4 << 20);
  submit_big(1, 8);
  Batch batch;
  ASSERT_EQ(batcher.take(0, large, clock.now_, batch, needed), Taken::kBatch);
  EXPECT_TRUE(batch.lent.empty());
  batcher.finish(batch.id, {}, {ByteView(large)}); // without a keeper
  submit_big(1);
  submit_big(2);
  Batch both;
  ASSERT_EQ(batcher.take(0, large, clock.now_, both, needed), Taken::kBatch);
  EXPECT_EQ(both.rows, 2 * kRows);
  EXPECT_TRUE(both.lent.empty());
  const auto keep = std::make_shared<int>(0);
  batcher.finish(both.id, {}, {ByteView(large)}, keep);
  ASSERT_EQ(answers.list.size(), 3u);
  for (const auto& answer : answers.list)
    EXPECT_TRUE(answer.result->bytes);
  EXPECT_EQ(keep.use_count(), 1);
  EXPECT_EQ(batcher.counters().lent, 0u);
}

TEST_F(LendingTest, LocalCallersGetACopyOfWhatIsLent) {
  LocalCalls local(batcher, bytes, clock);
  rpc::Call call;
  call.uid = "big";
  call.tensors = {TensorSpec{DType::kFloat32, {4}}.meta(kRows)};
  const Buffer x(2 << 20, std::byte{3});
  const auto ticket = local.submit(call, {ByteView(x)}, 10 * kSecond);
  Batch batch;
  ASSERT_EQ(batcher.take(0, {}, clock.now_, batch, needed), Taken::kBatch);
  const auto keep = std::make_shared<int>(0);
  batcher.finish(batch.id, {}, {ByteView(batch.lent)}, keep);
  EXPECT_EQ(keep.use_count(), 1);
  const auto answer = local.wait(*ticket, clock.now_);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->result.bytes[x.size() - 1], std::byte{3});
}

} // namespace
} // namespace lah::batching
