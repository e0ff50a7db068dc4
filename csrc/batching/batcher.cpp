#include "batching/batcher.hpp"

#include <chrono>

namespace lah::batching {

Batcher::Batcher(const Clock& clock, ByteAllocator& allocator)
    : clock_(clock), allocator_(allocator) {}

uint32_t Batcher::add_pool(PoolSpec spec) {
  const std::lock_guard lock(mutex_);
  const auto index = static_cast<uint32_t>(pools_.size());
  pools_by_uid_[static_cast<size_t>(spec.method)][spec.uid] = index;
  pools_.emplace_back(std::move(spec));
  return index;
}

void Batcher::set_description(const std::string& uid, std::string json) {
  const std::lock_guard lock(mutex_);
  descriptions_[uid] = std::move(json);
}

void Batcher::connect(ReplyPort* port) {
  const std::lock_guard lock(port_mutex_);
  port_ = port;
}

Result<uint32_t> Batcher::admit(const rpc::Call& call) {
  const std::lock_guard lock(mutex_);
  if (stopped_)
    return Error{ErrorCode::kShuttingDown, "the server is shutting down"};
  const auto& by_uid = pools_by_uid_[static_cast<size_t>(call.method)];
  const auto found = by_uid.find(call.uid);
  if (found == by_uid.end()) {
    if (call.method == rpc::Method::kState && descriptions_.contains(call.uid))
      return Error{ErrorCode::kNotPermitted,
                   "the server keeps its experts' weights to itself (allow_fetch=False)"};
    return Error{ErrorCode::kExpertNotFound, "no expert '" + call.uid + "' is served here"};
  }
  const TaskPool& pool = pools_[found->second];
  if (const auto rows = pool.check(call); !rows)
    return rows.error();
  if (pool.size() >= pool.spec().queue_limit)
    return Error{ErrorCode::kOverloaded, "expert '" + call.uid + "': queue is full", "", 200};
  if (call.method == rpc::Method::kState && !may_lend_state())
    return Error{ErrorCode::kOverloaded, "too many experts are being fetched", "", 1000};
  return found->second;
}

void Batcher::submit(rpc::IncomingCall call) {
  {
    const std::lock_guard lock(mutex_);
    if (!stopped_) {
      ++counters_.requests;
      pools_[call.pool].push(std::move(call));
      arrived_.notify_one();
      return;
    }
  }
  send_fail(call.key, {ErrorCode::kShuttingDown, "the server is shutting down"});
}

void Batcher::cancel(const rpc::CallKey& key) {
  bool removed = false;
  {
    const std::lock_guard lock(mutex_);
    for (TaskPool& pool : pools_)
      if ((removed = pool.remove(key)))
        break;
  }
  if (removed)
    send_fail(key, {ErrorCode::kCancelled, "cancelled by the caller"});
}

Result<std::string> Batcher::describe(const std::string& uid) {
  const std::lock_guard lock(mutex_);
  const auto found = descriptions_.find(uid);
  if (found == descriptions_.end())
    return Error{ErrorCode::kExpertNotFound, "no expert '" + uid + "' is served here"};
  return found->second;
}

// Highest priority first, then the pool whose oldest request has waited longest.
std::optional<uint32_t> Batcher::next_pool(Time now, Time& wake_at) {
  std::optional<uint32_t> best;
  for (uint32_t i = 0; i < pools_.size(); ++i) {
    const TaskPool& pool = pools_[i];
    if (const Time ready_at = pool.ready_at(); ready_at > now) {
      wake_at = std::min(wake_at, ready_at);
      continue;
    }
    const bool better =
        !best || pool.priority() > pools_[*best].priority() ||
        (pool.priority() == pools_[*best].priority() && pool.oldest() < pools_[*best].oldest());
    if (better)
      best = i;
  }
  return best;
}

bool Batcher::prepare(Time now, Time& wake_at, std::vector<rpc::CallKey>& expired) {
  while (const auto pool = next_pool(now, wake_at)) {
    const size_t before = expired.size();
    Running running;
    running.pool = *pool;
    running.calls = pools_[*pool].take(now, expired);
    counters_.expired += expired.size() - before;
    if (running.calls.empty())
      continue;
    for (const rpc::IncomingCall& call : running.calls)
      running.rows += call_rows(call.header);
    running.left = running.calls.size();
    running.answered.resize(running.left);
    pending_ = next_id_++;
    running_.emplace(pending_, std::move(running));
    return true;
  }
  return false;
}

Taken Batcher::take(MutableByteView slab, Time deadline, Batch& batch, size_t& slab_bytes_needed) {
  std::vector<rpc::CallKey> expired;
  Taken taken = Taken::kTimeout;
  const Running* running = nullptr;
  {
    std::unique_lock lock(mutex_);
    while (true) {
      const Time now = clock_.now();
      Time wake_at = deadline;
      if (stopped_) {
        taken = Taken::kStopped;
        break;
      }
      if (pending_ != 0 || prepare(now, wake_at, expired)) {
        running = &running_.at(pending_); // map nodes stay put; only this thread erases
        taken = Taken::kBatch;
        break;
      }
      if (now >= deadline || !expired.empty() || std::exchange(woken_, false))
        break;
      arrived_.wait_for(lock, std::chrono::nanoseconds(wake_at - now));
    }
  }
  for (const rpc::CallKey& key : expired)
    send_fail(key, {ErrorCode::kDeadlineExceeded, "the deadline passed in the queue"});
  if (taken != Taken::kBatch)
    return taken;
  batch = {pending_, running->pool, running->rows, running->calls.front().header.training, {}, {}};
  for (const rpc::IncomingCall& call : running->calls)
    batch.request_rows.push_back(call_rows(call.header));
  batch.offsets = layout(*running, slab_bytes_needed);
  if (slab.size() < slab_bytes_needed)
    return Taken::kSlabTooSmall;
  fill(*running, batch.offsets, slab);
  const std::lock_guard lock(mutex_);
  Running& started = running_.at(pending_);
  started.started = clock_.now();
  for (rpc::IncomingCall& call : started.calls) { // the request's bytes are in the slab now
    call.frame.reset();
    call.buffer.reset();
    call.bytes = {};
  }
  ++counters_.batches;
  counters_.rows += started.rows;
  pending_ = 0;
  return Taken::kBatch;
}

std::vector<uint64_t> Batcher::layout(const Running& running, size_t& bytes) const {
  std::vector<uint64_t> offsets;
  bytes = 0;
  for (const TensorSpec& input : pools_[running.pool].spec().inputs) {
    offsets.push_back(bytes);
    bytes += align_up(input.row_bytes() * running.rows);
  }
  return offsets;
}

void Batcher::fill(const Running& running, const std::vector<uint64_t>& offsets,
                   MutableByteView slab) const {
  std::vector<uint64_t> written = offsets;
  for (const rpc::IncomingCall& call : running.calls) {
    size_t at = 0;
    for (size_t i = 0; i < written.size(); ++i) {
      const size_t size = call.header.tensors[i].wire_bytes;
      if (size > 0)
        std::memcpy(slab.data() + written[i], call.bytes.data() + at, size);
      written[i] += size;
      at += align_up(size);
    }
  }
}

// The requests that are to be answered, as a batch of their own.
Batcher::Running Batcher::take_running(uint64_t batch_id, const Requests& requests) {
  Running part;
  const std::lock_guard lock(mutex_);
  const auto found = running_.find(batch_id);
  if (found == running_.end())
    return part;
  Running& running = found->second;
  part.pool = running.pool;
  part.started = running.started;
  part.rows = running.rows;
  const auto take = [&](size_t i) {
    if (i >= running.calls.size() || running.answered[i])
      return;
    running.answered[i] = true;
    --running.left;
    part.calls.push_back(std::move(running.calls[i]));
  };
  for (uint32_t i : requests)
    take(i);
  for (size_t i = 0; requests.empty() && i < running.calls.size(); ++i)
    take(i);
  if (running.left == 0)
    running_.erase(found);
  return part;
}

// A request of a few bytes is answered by a whole expert, which waits here for a slow reader.
bool Batcher::may_lend_state() {
  std::erase_if(lent_states_, [](const auto& state) { return state.expired(); });
  return lent_states_.size() < Limits::kStatesLent;
}

void Batcher::finish(uint64_t batch_id, const Requests& requests,
                     const std::vector<ByteView>& outputs) {
  const Running running = take_running(batch_id, requests);
  const Time now = clock_.now();
  uint64_t first_row = 0;
  for (const rpc::IncomingCall& call : running.calls) {
    auto result = result_of(running, call, now, outputs, first_row);
    first_row += call_rows(call.header);
    if (!result) {
      send_fail(call.key, {ErrorCode::kOverloaded, "out of memory for the result", "", 1000});
      continue;
    }
    const std::lock_guard lock(port_mutex_);
    if (port_ != nullptr)
      port_->reply(call.key, std::move(*result));
  }
}

// Nothing if there is no memory for it.
std::optional<rpc::OutgoingResult> Batcher::result_of(const Running& running,
                                                      const rpc::IncomingCall& call, Time now,
                                                      const std::vector<ByteView>& outputs,
                                                      uint64_t first_row) {
  const std::vector<TensorSpec>& specs = pools_[running.pool].spec().outputs;
  const bool state = call.header.method == rpc::Method::kState;
  const uint64_t rows = state ? outputs.front().size() : call_rows(call.header);
  rpc::OutgoingResult result;
  result.header.queue_us = static_cast<uint64_t>((running.started - call.arrived) / kMicrosecond);
  result.header.service_us = static_cast<uint64_t>((now - running.started) / kMicrosecond);
  result.header.batch_rows = running.rows;
  for (const TensorSpec& spec : specs)
    result.header.tensors.push_back(spec.meta(rows));
  result.bytes = allocator_.allocate(rpc::stream_bytes(result.header.tensors));
  if (!result.bytes)
    return std::nullopt;
  size_t at = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    const size_t size = rows * specs[i].row_bytes();
    if (size > 0)
      std::memcpy(result.bytes.get() + at, outputs[i].data() + first_row * specs[i].row_bytes(),
                  size);
    std::memset(result.bytes.get() + at + size, 0, align_up(size) - size);
    at += align_up(size);
  }
  if (state) {
    const std::lock_guard lock(mutex_);
    lent_states_.emplace_back(result.bytes);
  }
  return result;
}

void Batcher::fail(uint64_t batch_id, const Requests& requests, const Error& error) {
  const Running running = take_running(batch_id, requests);
  for (const rpc::IncomingCall& call : running.calls)
    send_fail(call.key, error);
  const std::lock_guard lock(mutex_);
  counters_.failed += running.calls.size();
}

void Batcher::send_fail(const rpc::CallKey& key, const Error& error) {
  const std::lock_guard lock(port_mutex_);
  if (port_ != nullptr)
    port_->fail(key, error);
}

void Batcher::stop() {
  std::vector<rpc::CallKey> waiting;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    for (TaskPool& pool : pools_)
      for (const rpc::IncomingCall& call : pool.drain())
        waiting.push_back(call.key);
    arrived_.notify_all();
  }
  for (const rpc::CallKey& key : waiting)
    send_fail(key, {ErrorCode::kShuttingDown, "the server is shutting down"});
}

void Batcher::wake() {
  const std::lock_guard lock(mutex_);
  woken_ = true;
  arrived_.notify_all();
}

Batcher::Counters Batcher::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

} // namespace lah::batching
