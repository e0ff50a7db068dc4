#include "rpc/call_latency.hpp"

#include <algorithm>
#include <bit>

namespace lah::rpc {

CallClass CallClass::of(PeerId peer, const Call& call) {
  return {peer, call.method, static_cast<int>(std::bit_width(stream_bytes(call.tensors))),
          call.uid};
}

void CallLatency::sample(const CallClass& kind, Duration elapsed) {
  if (recent_.size() >= Limits::kCallClasses && !recent_.contains(kind))
    recent_.erase(recent_.begin()); // peers are numbered upwards: the oldest one's
  Recent& recent = recent_[kind];
  recent.elapsed[recent.count++ % kRecent] = elapsed;
}

std::optional<Duration> CallLatency::quantile(const CallClass& kind, size_t percent) const {
  const auto found = recent_.find(kind);
  if (found == recent_.end() || found->second.count < kEnough)
    return std::nullopt;
  std::array<Duration, kRecent> sorted = found->second.elapsed;
  const size_t held = std::min(found->second.count, kRecent);
  const size_t rank = std::min(held * percent / 100, held - 1);
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(rank),
                   sorted.begin() + static_cast<std::ptrdiff_t>(held));
  return sorted[rank];
}

std::optional<Duration> CallLatency::p95(const CallClass& kind) const {
  return quantile(kind, 95);
}

std::optional<Duration> CallLatency::longest(const CallClass& kind) const {
  return quantile(kind, 100);
}

} // namespace lah::rpc
