#include "rpc/backward_memory.hpp"

#include <algorithm>

namespace lah::rpc {
namespace {

constexpr size_t kSmallestBuffer = 4096; // that an allocator gives for a result

size_t cost(const OutgoingResult& result) {
  return std::max<size_t>(result.header.total_bytes, kSmallestBuffer);
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
  entry->result = result;
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
