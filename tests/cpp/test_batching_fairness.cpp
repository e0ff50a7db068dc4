#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/rng.hpp"
#include "batching/batcher.hpp"
#include "batching/byte_pool.hpp"

namespace lah::batching {
namespace {

constexpr uint64_t kMaxRows = 512;
constexpr uint64_t kSmall = 16;
constexpr int kPeers = 64;

struct VirtualClock final : Clock {
  Time now() const override { return time; }
  WallMs wall_ms() const override { return 0; }
  Time time = kSecond;
};

// A server of one device in virtual time: a batch takes 1 ms and 20 us a row, one of kMaxRows rows
// 11 ms.
struct Device : ReplyPort {
  Device() {
    PoolSpec spec;
    spec.uid = "expert";
    spec.inputs = spec.outputs = {{DType::kUInt8, {}}};
    spec.max_batch_rows = kMaxRows;
    batcher.add_pool(spec);
    batcher.connect(this);
  }

  void reply(const rpc::CallKey& key, rpc::OutgoingResult) override {
    answered.push_back(key.peer);
  }
  void fail(const rpc::CallKey&, const Error& error) override { ADD_FAILURE() << error.message; }

  void submit(rpc::PeerId peer, uint64_t rows, uint8_t priority = 0) {
    rpc::IncomingCall call;
    call.header.uid = "expert";
    call.header.priority = priority;
    call.header.tensors = {TensorSpec{DType::kUInt8, {}}.meta(rows)};
    call.header.total_bytes = rpc::stream_bytes(call.header.tensors);
    call.key.peer = peer;
    std::memcpy(call.key.id.data(), &++calls, sizeof(calls));
    call.arrived = clock.time;
    call.buffer = bytes.allocate(call.header.total_bytes);
    call.bytes = {call.buffer.get(), call.header.total_bytes};
    batcher.submit(std::move(call));
  }

  // Runs one batch, if there is one, and tells who was answered.
  std::vector<rpc::PeerId> run() {
    Batch batch;
    size_t needed = 0;
    answered.clear();
    if (batcher.take(0, slab, clock.time, batch, needed) != Taken::kBatch) {
      clock.time += 100 * kMicrosecond;
      return {};
    }
    clock.time += kMillisecond + static_cast<Duration>(batch.rows) * 20 * kMicrosecond;
    batcher.finish(batch.id, {}, {ByteView(slab).first(batch.rows)});
    return answered;
  }

  VirtualClock clock;
  BytePool bytes{1 << 20};
  Batcher batcher{clock, bytes};
  alignas(kTensorAlign) std::array<std::byte, 4096> slab{};
  std::vector<rpc::PeerId> answered;
  uint64_t calls = 0;
};

struct Waits {
  double worst = 0.0; // seconds, of all peers but the flooding one
  double mean = 0.0;
  int flooder_calls = 0;
  int other_calls = 0;
};

// Every peer has one small request at a time and thinks in between; the first one has `flood`
// requests of full batches.
Waits simulate(int flood, uint8_t priority = 0) {
  Device device;
  SeededRng rng(7);
  std::vector<Time> sent(kPeers, 0);
  std::vector<Time> next(kPeers, 0); // when a peer calls again
  std::vector<double> waited;
  Waits waits;
  const Time begin = device.clock.time;
  for (int i = 0; i < flood; ++i)
    device.submit(1, kMaxRows, priority);
  while (device.clock.time < begin + 20 * kSecond) {
    const Time now = device.clock.time;
    for (size_t i = 1; i < kPeers; ++i) {
      if (sent[i] == 0 && next[i] <= now) {
        sent[i] = now;
        device.submit(i + 1, kSmall);
      }
    }
    for (rpc::PeerId peer : device.run()) {
      if (peer == 1) {
        ++waits.flooder_calls;
        device.submit(1, kMaxRows, priority);
        continue;
      }
      const size_t i = peer - 1;
      waited.push_back(static_cast<double>(device.clock.time - sent[i]) / 1e9);
      sent[i] = 0;
      next[i] = device.clock.time + static_cast<Duration>(rng.below(20)) * kMillisecond;
    }
  }
  waits.other_calls = static_cast<int>(waited.size());
  waits.worst = *std::max_element(waited.begin(), waited.end());
  waits.mean = std::accumulate(waited.begin(), waited.end(), 0.0) / waits.other_calls;
  return waits;
}

TEST(Fairness, AFloodOfLargeBatchesDelaysItselfAndNoOtherPeer) {
  const Waits calm = simulate(0);
  const Waits flooded = simulate(256);
  EXPECT_LE(flooded.worst, 5 * flooded.mean);
  EXPECT_LE(calm.worst, 5 * calm.mean);
  EXPECT_LE(flooded.mean, 1.5 * calm.mean);
  EXPECT_GE(flooded.other_calls, calm.other_calls * 9 / 10);
  EXPECT_GE(flooded.flooder_calls, 20'000 / 11 / kPeers); // it has its share of the 20 s
}

TEST(Fairness, PriorityBringsAFloodForwardOnceAndDoesNotAddToItsShare) {
  const Waits flooded = simulate(256);
  const Waits urgent = simulate(256, 60);
  // 60 s of precedence are used up by 60 s / (64 peers * 11 ms) full batches.
  const int precedence = static_cast<int>(60 * kSecond / (kPeers * 11 * kMillisecond));
  EXPECT_GE(urgent.flooder_calls, precedence);
  EXPECT_LE(urgent.flooder_calls, precedence + 2 * flooded.flooder_calls);
}

} // namespace
} // namespace lah::batching
