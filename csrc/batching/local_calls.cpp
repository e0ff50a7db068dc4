#include "batching/local_calls.hpp"

#include <chrono>

namespace lah::batching {

LocalCalls::LocalCalls(Batcher& batcher, ByteAllocator& allocator, const Clock& clock)
    : batcher_(batcher), allocator_(allocator), clock_(clock) {
  batcher_.connect(this);
}

void LocalCalls::connect(ReplyPort* remote) {
  const std::lock_guard lock(remote_mutex_);
  remote_ = remote;
}

Result<uint64_t> LocalCalls::submit(rpc::Call header, const std::vector<ByteView>& tensors,
                                    Duration timeout) {
  header.total_bytes = rpc::stream_bytes(header.tensors);
  header.deadline_ms = static_cast<uint64_t>(std::max<Duration>(timeout / kMillisecond, 1));
  const auto pool = batcher_.admit(header);
  if (!pool)
    return pool.error();
  rpc::IncomingCall call;
  call.buffer = allocator_.allocate(header.total_bytes);
  if (!call.buffer)
    return Error{ErrorCode::kOverloaded, "out of memory", "", 1000};
  size_t at = 0;
  for (ByteView tensor : tensors) {
    if (!tensor.empty())
      std::memcpy(call.buffer.get() + at, tensor.data(), tensor.size());
    at += align_up(tensor.size());
  }
  uint64_t ticket = 0;
  {
    const std::lock_guard lock(mutex_);
    ticket = next_ticket_++;
  }
  call.key.peer = kHere;
  std::memcpy(call.key.id.data(), &ticket, sizeof(ticket));
  call.bytes = {call.buffer.get(), header.total_bytes};
  call.header = std::move(header);
  call.pool = *pool;
  call.arrived = clock_.now();
  call.deadline = call.arrived + timeout;
  batcher_.submit(std::move(call));
  return ticket;
}

std::optional<LocalResult> LocalCalls::wait(uint64_t ticket, Time until) {
  std::unique_lock lock(mutex_);
  const auto there = [&] { return results_.contains(ticket); };
  answered_.wait_for(lock, std::chrono::nanoseconds(std::max<Duration>(until - clock_.now(), 0)),
                     there);
  const auto found = results_.find(ticket);
  if (found == results_.end())
    return std::nullopt;
  LocalResult result = std::move(found->second);
  results_.erase(found);
  return result;
}

void LocalCalls::reply(const rpc::CallKey& key, rpc::OutgoingResult result) {
  if (key.peer == kHere) {
    if (!result.keep || gather(result))
      return keep(key, {Error{}, std::move(result)});
    return keep(key, {Error{ErrorCode::kOverloaded, "out of memory for the result", "", 1000}, {}});
  }
  const std::lock_guard lock(remote_mutex_);
  if (remote_ != nullptr)
    remote_->reply(key, std::move(result));
}

// Copies lent tensors into a stream; false if there is no memory for it.
bool LocalCalls::gather(rpc::OutgoingResult& result) {
  result.bytes = allocator_.allocate(rpc::stream_bytes(result.header.tensors));
  if (!result.bytes)
    return false;
  size_t at = 0;
  for (ByteView tensor : std::exchange(result.tensors, {})) {
    if (!tensor.empty())
      std::memcpy(result.bytes.get() + at, tensor.data(), tensor.size());
    at += align_up(tensor.size());
  }
  result.keep.reset();
  return true;
}

void LocalCalls::fail(const rpc::CallKey& key, const Error& error) {
  if (key.peer == kHere)
    return keep(key, {error, {}});
  const std::lock_guard lock(remote_mutex_);
  if (remote_ != nullptr)
    remote_->fail(key, error);
}

void LocalCalls::keep(const rpc::CallKey& key, LocalResult result) {
  uint64_t ticket = 0;
  std::memcpy(&ticket, key.id.data(), sizeof(ticket));
  const std::lock_guard lock(mutex_);
  results_.emplace(ticket, std::move(result));
  if (results_.size() > Limits::kPoolQueue) // nobody asked for the oldest in all this time
    results_.erase(results_.begin());
  answered_.notify_all();
}

} // namespace lah::batching
