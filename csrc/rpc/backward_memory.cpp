#include "rpc/backward_memory.hpp"

namespace lah::rpc {
namespace {

constexpr size_t kSmall = 4096;      // an allocator gives no smaller buffer for a result
constexpr size_t kEntryBytes = 1024; // what is kept beside a result's bytes

size_t cost(const OutgoingResult& result) {
  return result.header.total_bytes + kEntryBytes;
}

// Most results are small and far more are kept than travel at a time: they get memory of their own
// size.
OutgoingResult kept(const OutgoingResult& result) {
  OutgoingResult copy = result;
  const size_t size = result.header.total_bytes;
  if (result.bytes && size < kSmall) {
    copy.bytes = std::make_unique<std::byte[]>(size);
    std::memcpy(copy.bytes.get(), result.bytes.get(), size);
  }
  return copy;
}

} // namespace

void BackwardMemory::open(const RequestId& id, std::string_view caller, PeerId peer) {
  entries_[id] = {id, std::string(caller), peer, peer, false, false, {}};
}

BackwardMemory::Entry* BackwardMemory::find(const RequestId& id) {
  const auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : &found->second;
}

void BackwardMemory::applied(Time now, const RequestId& id, const OutgoingResult& result) {
  Entry* entry = find(id);
  if (entry == nullptr || entry->applied)
    return;
  entry->applied = entry->kept = true;
  entry->result = kept(result);
  bytes_ += cost(result);
  applied_.push_back({id, now});
  ++with_results_;
  drop_results();
}

void BackwardMemory::drop_results() {
  while (bytes_ > Limits::kBackwardBytes && with_results_ > 0) {
    Entry& oldest = entries_.at(applied_[applied_.size() - with_results_].id);
    bytes_ -= cost(oldest.result);
    oldest.result = {};
    oldest.kept = false;
    --with_results_;
  }
}

void BackwardMemory::failed(const RequestId& id) {
  const auto found = entries_.find(id);
  if (found != entries_.end() && !found->second.applied)
    entries_.erase(found);
}

void BackwardMemory::expire(Time now) {
  while (!applied_.empty() &&
         (applied_.size() > Limits::kBackwardCalls ||
          applied_.front().at + milliseconds(Limits::kBackwardMemoryMs) <= now)) {
    const auto oldest = entries_.find(applied_.front().id);
    if (oldest->second.kept) {
      bytes_ -= cost(oldest->second.result);
      --with_results_;
    }
    entries_.erase(oldest);
    applied_.pop_front();
  }
}

Time BackwardMemory::next_deadline() const {
  return applied_.empty() ? kNever : applied_.front().at + milliseconds(Limits::kBackwardMemoryMs);
}

} // namespace lah::rpc
