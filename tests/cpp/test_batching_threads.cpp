#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "batching/batcher.hpp"
#include "batching/byte_pool.hpp"

namespace lah::batching {
namespace {

constexpr uint64_t kRequests = 2000;
constexpr uint32_t kLanes = 2;

struct FrozenClock final : Clock {
  Time now() const override { return kSecond; }
  WallMs wall_ms() const override { return 0; }
};

// Counts the answers to each request, which any thread may give.
struct CountingPort final : ReplyPort {
  void reply(const rpc::CallKey& key, rpc::OutgoingResult) override { count(key); }
  void fail(const rpc::CallKey& key, const Error&) override { count(key); }

  void count(const rpc::CallKey& key) {
    uint64_t number = 0;
    std::memcpy(&number, key.id.data(), sizeof(number));
    answers[number].fetch_add(1);
  }
  std::vector<std::atomic<int>> answers = std::vector<std::atomic<int>>(kRequests);
};

rpc::IncomingCall request(uint64_t number, BytePool& bytes) {
  rpc::IncomingCall call;
  const bool big = number % 50 == 0; // lent
  call.header.uid = "expert." + std::to_string(number % kLanes);
  call.header.priority = static_cast<uint8_t>(number % 3);
  call.header.tensors = {TensorSpec{DType::kUInt8, {64}}.meta(big ? 4096 : 8)};
  call.header.total_bytes = rpc::stream_bytes(call.header.tensors);
  call.key.peer = number % 7;
  std::memcpy(call.key.id.data(), &number, sizeof(number));
  call.arrived = kSecond + static_cast<Time>(number);
  call.buffer = bytes.allocate(call.header.total_bytes);
  call.bytes = {call.buffer.get(), call.header.total_bytes};
  return call;
}

// Runs the batches of one lane; every fifth request is failed alone.
void serve(Batcher& batcher, const Clock& clock, uint32_t lane) {
  Buffer slab(size_t{4} << 20);
  const std::vector<std::byte> outputs(size_t{4} << 20);
  while (true) {
    Batch batch;
    size_t needed = 0;
    const Taken taken = batcher.take(lane, slab, clock.now() + kSecond, batch, needed);
    if (taken == Taken::kStopped)
      return;
    if (taken != Taken::kBatch)
      continue;
    uint64_t left = batch.rows;
    for (uint32_t i = 0; i < batch.request_rows.size(); i += 5) {
      batcher.fail(batch.id, {i}, {ErrorCode::kRejected, "every fifth"});
      left -= batch.request_rows[i];
    }
    batcher.finish(batch.id, {}, {ByteView(outputs).first(left * 64)});
  }
}

TEST(BatchingThreads, EveryRequestIsAnsweredOnceWhateverThreadsDo) {
  const FrozenClock clock;
  BytePool bytes(size_t{16} << 20);
  CountingPort port;
  Batcher batcher(clock, bytes);
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    PoolSpec spec;
    spec.uid = "expert." + std::to_string(lane);
    spec.inputs = spec.outputs = {{DType::kUInt8, {64}}};
    spec.max_batch_rows = 8192;
    spec.lane = lane;
    batcher.add_pool(spec);
  }
  batcher.connect(&port);
  std::vector<std::jthread> runtimes;
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    runtimes.emplace_back([&, lane] { serve(batcher, clock, lane); });
  for (uint64_t number = 0; number < kRequests; ++number) {
    rpc::IncomingCall call = request(number, bytes);
    const rpc::CallKey key = call.key;
    call.pool = *batcher.admit(call.header);
    batcher.submit(std::move(call));
    if (number % 3 == 0)
      batcher.cancel(key);
    if (number % 100 == 0) {
      batcher.wait_us();
      batcher.wake();
    }
  }
  batcher.stop(); // answers those that wait; the others are being run
  runtimes.clear();
  for (uint64_t number = 0; number < kRequests; ++number)
    EXPECT_EQ(port.answers[number].load(), 1) << number;
}

} // namespace
} // namespace lah::batching
