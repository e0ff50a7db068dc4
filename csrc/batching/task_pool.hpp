// The queue of one method of one expert. Not thread-safe: the Batcher holds the lock.
#pragma once

#include <map>

#include "batching/service_time.hpp"
#include "batching/turns.hpp"

namespace lah::batching {

struct TensorSpec {
  DType dtype = DType::kFloat32;
  std::vector<uint64_t> instance_shape; // of one row

  uint64_t row_bytes() const;
  rpc::TensorMeta meta(uint64_t rows) const;
  std::string text() const; // "float32[*, 64]"
};

struct PoolSpec {
  std::string uid;
  rpc::Method method = rpc::Method::kForward;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  uint64_t max_batch_rows = 4096;
  uint64_t min_batch_rows = 1;
  Duration min_batch_wait =
      0; // a smaller batch leaves after its oldest request has waited this long
  size_t queue_limit = Limits::kPoolQueue;
  uint32_t lane = 0; // the device that runs its batches
};

class TaskPool {
public:
  explicit TaskPool(PoolSpec spec) : spec_(std::move(spec)) {}

  const PoolSpec& spec() const { return spec_; }
  // The rows of a call that fits this pool's schema, or what is wrong with it.
  Result<uint64_t> check(const rpc::Call& call) const;

  void push(rpc::IncomingCall call);
  bool remove(const rpc::CallKey& key);
  bool empty() const { return lines_.empty(); }
  size_t size() const { return size_; }
  // When the next batch may leave; kNever if nothing waits.
  Time ready_at() const;
  Time urgency(const Turns& turns) const; // of the next batch

  // Takes the most urgent requests of one mode, up to max_batch_rows, and charges their peers;
  // those that have expired, and would be taken, go to `expired`.
  std::vector<rpc::IncomingCall> take(Time now, Turns& turns, std::vector<rpc::CallKey>& expired);
  std::vector<rpc::CallKey> drain();

  // What it takes to run the waiting requests of this priority and above.
  Duration waiting_time(uint8_t priority) const;
  // The share of one request in its batch's time, if batches are full.
  Duration request_time(uint64_t rows) const;
  ServiceTime& service_time() { return service_time_; }

private:
  // The requests of one peer: by arrival, earlier by kAgeing for each level of priority.
  using Line = std::multimap<Time, rpc::IncomingCall>;
  void count(const rpc::IncomingCall& call, bool came);

  PoolSpec spec_;
  std::map<rpc::PeerId, Line> lines_;
  size_t size_ = 0;
  std::map<uint8_t, uint64_t> rows_; // waiting, by priority
  ServiceTime service_time_;
};

// Of a call that passed check(); one without tensors (Method::kState) counts as one row.
uint64_t call_rows(const rpc::Call& call);

} // namespace lah::batching
