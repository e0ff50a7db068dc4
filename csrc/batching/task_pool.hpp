// The queue of one method of one expert. Not thread-safe: the Batcher holds the lock.
#pragma once

#include <deque>

#include "rpc/server.hpp"

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
};

class TaskPool {
public:
  explicit TaskPool(PoolSpec spec) : spec_(std::move(spec)) {}

  const PoolSpec& spec() const { return spec_; }
  // The rows of a call that fits this pool's schema, or what is wrong with it.
  Result<uint64_t> check(const rpc::Call& call) const;

  void push(rpc::IncomingCall call);
  bool remove(const rpc::CallKey& key);
  bool empty() const { return queue_.empty(); }
  size_t size() const { return queue_.size(); }
  // When the next batch may leave; kNever if nothing waits.
  Time ready_at() const;
  uint8_t priority() const { return queue_.front().header.priority; }
  Time oldest() const { return queue_.front().arrived; }

  // Takes requests of one mode, oldest first, up to max_batch_rows; expired ones go to `expired`.
  std::vector<rpc::IncomingCall> take(Time now, std::vector<rpc::CallKey>& expired);
  std::deque<rpc::IncomingCall> drain();

private:
  PoolSpec spec_;
  std::deque<rpc::IncomingCall> queue_;
  uint64_t rows_ = 0;
};

// Of a call that passed check(); one without tensors (Method::kState) counts as one row.
uint64_t call_rows(const rpc::Call& call);

} // namespace lah::batching
