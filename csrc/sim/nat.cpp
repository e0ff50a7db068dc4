#include "sim/nat.hpp"

#include <algorithm>

namespace lah::sim {

Endpoint Nat::outbound(Time now, const Endpoint& to) {
  if (now - swept_at_ > timeout_)
    sweep(now);
  const auto [place, opened] = mappings_.try_emplace(key(to), Mapping{});
  Mapping& mapping = place->second;
  if (opened || !is_fresh(now, mapping.used_at))
    mapping = {last_port_ = last_port_ == UINT16_MAX ? 20'000 : last_port_ + 1, now, {}};
  mapping.used_at = now;
  mapping.sent_to[to] = now;
  Endpoint from = outside_;
  from.port = mapping.port;
  return from;
}

bool Nat::admits(Time now, uint16_t port, const Endpoint& from) const {
  const auto found = mappings_.find(key(from));
  if (found == mappings_.end() || found->second.port != port ||
      !is_fresh(now, found->second.used_at))
    return false;
  if (kind_ == NatKind::kFullCone)
    return true;
  const auto& sent_to = found->second.sent_to;
  if (kind_ != NatKind::kAddressRestricted) {
    const auto sent = sent_to.find(from);
    return sent != sent_to.end() && is_fresh(now, sent->second);
  }
  for (auto sent = sent_to.lower_bound({from.ip, 0});
       sent != sent_to.end() && sent->first.ip == from.ip; ++sent)
    if (is_fresh(now, sent->second))
      return true;
  return false;
}

// What is no longer fresh counts for nothing before this too: it only takes room.
void Nat::sweep(Time now) {
  swept_at_ = now;
  std::erase_if(mappings_, [&](const auto& item) { return !is_fresh(now, item.second.used_at); });
  for (auto& [destination, mapping] : mappings_)
    std::erase_if(mapping.sent_to, [&](const auto& item) { return !is_fresh(now, item.second); });
}

} // namespace lah::sim
