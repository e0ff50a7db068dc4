#include "dht/pending.hpp"

#include <algorithm>

namespace lah::dht {

void PendingRequests::add(SentRequest request, Duration rto) {
  request.soft_at = request.sent_at + rto;
  request.hard_at = request.sent_at + std::max(4 * rto, kHardTimeoutMin);
  deadlines_.insert({request.soft_at, request.txid});
  requests_.emplace(request.txid, std::move(request));
}

std::optional<SentRequest> PendingRequests::take(uint64_t txid, const PublicKey& from,
                                                 const Endpoint& endpoint, MessageKind kind) {
  const auto found = requests_.find(txid);
  if (found == requests_.end())
    return std::nullopt;
  const SentRequest& request = found->second;
  if (request.to.key != from || request.to.endpoint != endpoint ||
      (request.kind != kind && kind != MessageKind::kError))
    return std::nullopt;
  std::optional<SentRequest> taken = std::move(found->second);
  deadlines_.erase({taken->retransmitted ? taken->hard_at : taken->soft_at, txid});
  requests_.erase(found);
  return taken;
}

PendingRequests::Due PendingRequests::due(Time now) {
  Due result;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint64_t txid = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    const auto found = requests_.find(txid);
    SentRequest& request = found->second;
    if (request.retransmitted) {
      result.failed.push_back(std::move(request));
      requests_.erase(found);
      continue;
    }
    request.retransmitted = true;
    deadlines_.insert({std::max(request.hard_at, now + 1), txid});
    request.hard_at = std::max(request.hard_at, now + 1);
    result.overdue.push_back(request);
  }
  return result;
}

Time PendingRequests::next_deadline() const {
  return deadlines_.empty() ? kNever : deadlines_.begin()->first;
}

} // namespace lah::dht
