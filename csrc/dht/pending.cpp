#include "dht/pending.hpp"

#include <algorithm>

namespace lah::dht {

void PendingRequests::add(SentRequest request, Duration rto, Duration patience) {
  request.rto = rto;
  request.patience = patience;
  request.next_at = request.sent_at + rto;
  deadlines_.insert({request.next_at, request.txid});
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
  deadlines_.erase({taken->next_at, txid});
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
    if (request.stage == SentRequest::Stage::kLapsed) {
      result.failed.push_back(std::move(request));
      requests_.erase(found);
      continue;
    }
    const bool overdue = request.stage == SentRequest::Stage::kSent;
    request.stage = overdue ? SentRequest::Stage::kOverdue : SentRequest::Stage::kLapsed;
    request.next_at =
        overdue ? std::max(request.sent_at + std::max(request.rto * 3 / 2, request.patience),
                           now + request.rto / 2) // however late this timer is
                : std::max(request.sent_at + std::max(4 * request.rto, kHardTimeoutMin),
                           request.next_at + request.rto); // it may have been sent once more
    deadlines_.insert({request.next_at, txid});
    (overdue ? result.overdue : result.lapsed).push_back(request);
  }
  return result;
}

Time PendingRequests::next_deadline() const {
  return deadlines_.empty() ? kNever : deadlines_.begin()->first;
}

} // namespace lah::dht
