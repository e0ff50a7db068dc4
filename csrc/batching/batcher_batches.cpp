// What the runtime threads do with batches.
#include <chrono>

#include "batching/batcher.hpp"
#include "rpc/coded_tensors.hpp"

namespace lah::batching {
namespace {
constexpr size_t kCopyBelow = size_t{128} << 10; // cheaper than lending

bool all_raw(const std::vector<rpc::TensorMeta>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const rpc::TensorMeta& tensor) {
    return tensor.codec == rpc::Codec::kRaw;
  });
}

// A result of one chunk travels with its padding, which the tensors do not have.
bool may_lend(const std::vector<rpc::TensorMeta>& result) {
  return rpc::stream_bytes(result) > Limits::kChunkBytes && all_raw(result);
}
} // namespace

Taken Batcher::take(uint32_t lane_index, MutableByteView slab, Time deadline, Batch& batch,
                    size_t& slab_bytes_needed) {
  std::vector<rpc::CallKey> expired;
  Taken taken = Taken::kTimeout;
  Lane& lane = lanes_[lane_index]; // no lane is added once the runtime threads run
  Running* running = nullptr;
  {
    std::unique_lock lock(mutex_);
    while (true) {
      const Time now = clock_.now();
      Time wake_at = deadline;
      if (stopped_) {
        taken = Taken::kStopped;
        break;
      }
      if (lane.pending != 0 || prepare(lane, now, wake_at, expired)) {
        running = &running_.at(lane.pending); // map nodes stay put; only this thread erases it
        taken = Taken::kBatch;
        break;
      }
      if (now >= deadline || !expired.empty() || std::exchange(lane.woken, false))
        break;
      lane.arrived.wait_for(lock, std::chrono::nanoseconds(wake_at - now));
    }
  }
  for (const rpc::CallKey& key : expired)
    send_fail(key, {ErrorCode::kDeadlineExceeded, "the deadline passed in the queue"});
  if (taken != Taken::kBatch)
    return taken;
  batch = {
      lane.pending, running->pool, running->rows, running->calls.front().header.training, {}, {}};
  for (const rpc::IncomingCall& call : running->calls)
    batch.request_rows.push_back(call_rows(call.header));
  batch.offsets = layout(*running, slab_bytes_needed);
  const bool lent = lend(*running, batch, slab_bytes_needed);
  if (!lent) {
    if (slab.size() < slab_bytes_needed)
      return Taken::kSlabTooSmall;
    fill(*running, batch.offsets, slab);
  }
  const std::lock_guard lock(mutex_);
  Running& started = running_.at(lane.pending);
  started.started = clock_.now();
  for (rpc::IncomingCall& call : started.calls) { // the request's bytes are the runtime's now
    call.frame.reset();
    call.buffer.reset();
    call.bytes = {};
  }
  ++counters_.batches;
  counters_.lent += lent ? 1 : 0;
  counters_.rows += started.rows;
  lane.pending = 0;
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

// A stream has its tensors where a batch of one request has them in the slab.
bool Batcher::lend(Running& running, Batch& batch, size_t bytes) {
  rpc::IncomingCall& call = running.calls.front();
  const bool aligned = reinterpret_cast<uintptr_t>(call.bytes.data()) % kTensorAlign == 0;
  if (running.calls.size() != 1 || !all_raw(call.header.tensors) || !aligned || bytes < kCopyBelow)
    return false;
  // Nobody else has the request's bytes: they are the batch's to write, as the slab is.
  batch.lent = {const_cast<std::byte*>(call.bytes.data()), call.bytes.size()};
  if (call.buffer)
    batch.owner = std::move(call.buffer);
  else
    batch.owner = std::shared_ptr<const void>(std::move(call.frame));
  return true;
}

void Batcher::fill(const Running& running, const std::vector<uint64_t>& offsets,
                   MutableByteView slab) const {
  const std::vector<TensorSpec>& inputs = pools_[running.pool].spec().inputs;
  std::vector<uint64_t> written = offsets;
  for (const rpc::IncomingCall& call : running.calls) {
    size_t at = 0;
    for (size_t i = 0; i < written.size(); ++i) {
      const rpc::TensorMeta& tensor = call.header.tensors[i];
      const size_t size = call_rows(call.header) * inputs[i].row_bytes();
      codecs::decode(tensor.codec, call.bytes.subspan(at, tensor.wire_bytes),
                     slab.subspan(written[i], size)); // admit() has checked that the sizes fit
      written[i] += size;
      at += align_up(tensor.wire_bytes);
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
  const Time now = clock_.now();
  TaskPool& pool = pools_[running.pool];
  if (running.left == 0) {
    pool.service_time().add(running.rows, now - running.started);
    running_.erase(found);
  }
  part.wait_us = static_cast<uint64_t>(wait(pool.spec().lane, 0, now) / kMicrosecond);
  return part;
}

// A request of a few bytes is answered by a whole expert, which waits here for a slow reader.
bool Batcher::may_lend_state() {
  std::erase_if(lent_states_, [](const auto& state) { return state.expired(); });
  return lent_states_.size() < Limits::kStatesLent;
}

void Batcher::finish(uint64_t batch_id, const Requests& requests,
                     const std::vector<ByteView>& outputs, std::shared_ptr<const void> keep) {
  const Running running = take_running(batch_id, requests);
  const Time now = clock_.now();
  uint64_t first_row = 0;
  for (const rpc::IncomingCall& call : running.calls) {
    // A late backward call was applied all the same: its answer is kept for callers that repeat it.
    if (call.deadline <= now && call.header.method != rpc::Method::kBackward) {
      first_row += call_rows(call.header);
      drop_late(call);
      continue;
    }
    auto result = result_of(running, call, now, outputs, first_row, keep);
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

void Batcher::drop_late(const rpc::IncomingCall& call) {
  if (call.deadline == kCancelled)
    return send_fail(call.key, {ErrorCode::kCancelled, "cancelled by the caller"});
  {
    const std::lock_guard lock(mutex_);
    ++counters_.expired;
  }
  send_fail(call.key, {ErrorCode::kDeadlineExceeded, "the deadline passed while its batch ran"});
}

// Nothing if there is no memory for it.
std::optional<rpc::OutgoingResult> Batcher::result_of(const Running& running,
                                                      const rpc::IncomingCall& call, Time now,
                                                      const std::vector<ByteView>& outputs,
                                                      uint64_t first_row,
                                                      const std::shared_ptr<const void>& keep) {
  const std::vector<TensorSpec>& specs = pools_[running.pool].spec().outputs;
  const bool state = call.header.method == rpc::Method::kState;
  const uint64_t rows = state ? outputs.front().size() : call_rows(call.header);
  rpc::OutgoingResult result;
  result.header.queue_us = static_cast<uint64_t>((running.started - call.arrived) / kMicrosecond);
  result.header.service_us = static_cast<uint64_t>((now - running.started) / kMicrosecond);
  result.header.batch_rows = running.rows;
  result.header.wait_us = running.wait_us;
  for (const TensorSpec& spec : specs)
    result.header.tensors.push_back(rpc::with_codec(spec.meta(rows), call.header.result_codec));
  if (keep && !state && running.calls.size() == 1 && may_lend(result.header.tensors)) {
    result.tensors = outputs;
    result.keep = keep;
    const std::lock_guard lock(mutex_);
    ++counters_.lent;
    return result;
  }
  result.bytes = allocator_.allocate(rpc::stream_bytes(result.header.tensors));
  if (!result.bytes)
    return std::nullopt;
  std::byte* to = result.bytes.get();
  for (size_t i = 0; i < specs.size(); ++i) {
    const rpc::TensorMeta& tensor = result.header.tensors[i];
    const uint64_t row_bytes = specs[i].row_bytes();
    codecs::encode(tensor.codec, outputs[i].subspan(first_row * row_bytes, rows * row_bytes),
                   {to, tensor.wire_bytes});
    const size_t padded = align_up(tensor.wire_bytes);
    std::memset(to + tensor.wire_bytes, 0, padded - tensor.wire_bytes);
    to += padded;
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

} // namespace lah::batching
