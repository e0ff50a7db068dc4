// A batcher with two pools, its clock, and the answers it gives.
#pragma once

#include <gtest/gtest.h>

#include "batching/batcher.hpp"
#include "batching/byte_pool.hpp"

namespace lah::batching {

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

} // namespace lah::batching
