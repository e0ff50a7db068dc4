#include "batching/task_pool.hpp"

namespace lah::batching {

uint64_t TensorSpec::row_bytes() const {
  uint64_t bytes = dtype_bytes(dtype);
  for (uint64_t extent : instance_shape)
    bytes *= extent;
  return bytes;
}

rpc::TensorMeta TensorSpec::meta(uint64_t rows) const {
  rpc::TensorMeta meta{dtype, rpc::Codec::kRaw, {rows}, rows * row_bytes()};
  meta.shape.insert(meta.shape.end(), instance_shape.begin(), instance_shape.end());
  return meta;
}

std::string TensorSpec::text() const {
  std::string out = std::string(dtype_name(dtype)) + "[*";
  for (uint64_t extent : instance_shape)
    out += ", " + std::to_string(extent);
  return out + "]";
}

uint64_t call_rows(const rpc::Call& call) {
  return call.tensors.empty() ? 1 : call.tensors.front().shape.front();
}

Result<uint64_t> TaskPool::check(const rpc::Call& call) const {
  const auto mismatch = [&](const std::string& text) {
    return Error{ErrorCode::kSchemaMismatch, "expert '" + spec_.uid + "': " + text};
  };
  if (call.tensors.size() != spec_.inputs.size())
    return mismatch("expected " + std::to_string(spec_.inputs.size()) + " tensors, got " +
                    std::to_string(call.tensors.size()));
  if (spec_.inputs.empty())
    return 1;
  uint64_t rows = 0;
  for (size_t i = 0; i < spec_.inputs.size(); ++i) {
    const rpc::TensorMeta& got = call.tensors[i];
    const TensorSpec& expected = spec_.inputs[i];
    const bool shaped = got.shape.size() == expected.instance_shape.size() + 1 &&
                        std::equal(expected.instance_shape.begin(), expected.instance_shape.end(),
                                   got.shape.begin() + 1);
    if (!shaped || got.dtype != expected.dtype)
      return mismatch("tensor " + std::to_string(i) + ": expected " + expected.text() + ", got " +
                      got.text());
    if (i > 0 && got.shape.front() != rows)
      return mismatch("tensor " + std::to_string(i) + ": expected " + std::to_string(rows) +
                      " rows as in tensor 0, got " + std::to_string(got.shape.front()));
    rows = got.shape.front();
  }
  if (rows == 0 || rows > spec_.max_batch_rows)
    return mismatch("expected 1 to " + std::to_string(spec_.max_batch_rows) +
                    " rows (max_batch_size), got " + std::to_string(rows));
  return rows;
}

void TaskPool::push(rpc::IncomingCall call) {
  rows_ += call_rows(call.header);
  queue_.push_back(std::move(call));
}

bool TaskPool::remove(const rpc::CallKey& key) {
  for (auto it = queue_.begin(); it != queue_.end(); ++it) {
    if (it->key == key) {
      rows_ -= call_rows(it->header);
      queue_.erase(it);
      return true;
    }
  }
  return false;
}

Time TaskPool::ready_at() const {
  if (queue_.empty())
    return kNever;
  return rows_ >= spec_.min_batch_rows ? queue_.front().arrived
                                       : queue_.front().arrived + spec_.min_batch_wait;
}

std::vector<rpc::IncomingCall> TaskPool::take(Time now, std::vector<rpc::CallKey>& expired) {
  std::vector<rpc::IncomingCall> batch;
  uint64_t rows = 0;
  while (!queue_.empty()) {
    rpc::IncomingCall& call = queue_.front();
    const uint64_t more = call_rows(call.header);
    if (call.deadline <= now) {
      expired.push_back(call.key);
    } else {
      if (!batch.empty() && (rows + more > spec_.max_batch_rows ||
                             call.header.training != batch.front().header.training))
        break;
      rows += more;
      batch.push_back(std::move(call));
    }
    rows_ -= more;
    queue_.pop_front();
  }
  return batch;
}

std::deque<rpc::IncomingCall> TaskPool::drain() {
  rows_ = 0;
  return std::exchange(queue_, {});
}

} // namespace lah::batching
