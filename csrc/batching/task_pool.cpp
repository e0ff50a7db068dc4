#include "batching/task_pool.hpp"

#include <queue>
#include <tuple>

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

void TaskPool::count(const rpc::IncomingCall& call, bool came) {
  uint64_t& rows = rows_[call.header.priority];
  rows = came ? rows + call_rows(call.header) : rows - call_rows(call.header);
  if (rows == 0)
    rows_.erase(call.header.priority);
  size_ = came ? size_ + 1 : size_ - 1;
}

void TaskPool::push(rpc::IncomingCall call) {
  count(call, true);
  const Time place = call.arrived - call.header.priority * kAgeing;
  lines_[call.key.peer].emplace(place, std::move(call));
}

bool TaskPool::remove(const rpc::CallKey& key) {
  const auto line = lines_.find(key.peer);
  if (line == lines_.end())
    return false;
  const auto found = std::find_if(line->second.begin(), line->second.end(),
                                  [&](const auto& waiting) { return waiting.second.key == key; });
  if (found == line->second.end())
    return false;
  count(found->second, false);
  line->second.erase(found);
  if (line->second.empty())
    lines_.erase(line);
  return true;
}

Time TaskPool::ready_at() const {
  if (empty())
    return kNever;
  uint64_t rows = 0;
  for (const auto& [priority, waiting] : rows_)
    rows += waiting;
  if (spec_.min_batch_wait == 0 || rows >= spec_.min_batch_rows)
    return 0;
  Time oldest = kNever; // few requests make no batch
  for (const auto& [peer, line] : lines_)
    for (const auto& [place, call] : line)
      oldest = std::min(oldest, call.arrived);
  return oldest + spec_.min_batch_wait;
}

Time TaskPool::urgency(const Turns& turns) const {
  Time urgency = kNever;
  for (const auto& [peer, line] : lines_)
    urgency = std::min(urgency, turns.urgency(line.begin()->second));
  return urgency;
}

std::vector<rpc::IncomingCall> TaskPool::take(Time now, Turns& turns,
                                              std::vector<rpc::CallKey>& expired) {
  struct Next { // of one line
    Time urgency;
    Time arrived;
    Line* line;
    Line::iterator call;
    bool operator>(const Next& other) const {
      return std::tie(urgency, arrived) > std::tie(other.urgency, other.arrived);
    }
  };
  std::priority_queue<Next, std::vector<Next>, std::greater<>> race;
  const auto enter = [&](Line& line, Line::iterator call) {
    if (call != line.end())
      race.push({turns.urgency(call->second), call->second.arrived, &line, call});
  };
  for (auto& [peer, line] : lines_)
    enter(line, line.begin());
  std::vector<rpc::IncomingCall> batch;
  uint64_t rows = 0;
  while (!race.empty()) {
    const Next next = race.top();
    race.pop();
    rpc::IncomingCall& call = next.call->second;
    const uint64_t more = call_rows(call.header);
    const bool late = call.deadline <= now;
    const bool other = !batch.empty() && call.header.training != batch.front().header.training;
    if (!late && other) { // it waits for a batch of its mode
      enter(*next.line, std::next(next.call));
      continue;
    }
    if (!late && !batch.empty() && rows + more > spec_.max_batch_rows)
      break;
    count(call, false);
    if (late) {
      expired.push_back(call.key);
    } else {
      turns.charge(call, request_time(more));
      rows += more;
      batch.push_back(std::move(call));
    }
    enter(*next.line, next.line->erase(next.call));
  }
  std::erase_if(lines_, [](const auto& line) { return line.second.empty(); });
  return batch;
}

std::vector<rpc::CallKey> TaskPool::drain() {
  std::vector<rpc::CallKey> keys;
  for (const auto& [peer, line] : lines_)
    for (const auto& [place, call] : line)
      keys.push_back(call.key);
  lines_.clear();
  rows_.clear();
  size_ = 0;
  return keys;
}

Duration TaskPool::waiting_time(uint8_t priority) const {
  uint64_t rows = 0;
  for (auto it = rows_.lower_bound(priority); it != rows_.end(); ++it)
    rows += it->second;
  const uint64_t batches = (rows + spec_.max_batch_rows - 1) / spec_.max_batch_rows;
  return service_time_.of(batches, rows);
}

Duration TaskPool::request_time(uint64_t rows) const {
  const Duration full = service_time_.of(1, spec_.max_batch_rows);
  return static_cast<Duration>(static_cast<double>(full) * static_cast<double>(rows) /
                               static_cast<double>(spec_.max_batch_rows));
}

} // namespace lah::batching
