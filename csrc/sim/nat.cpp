#include "sim/nat.hpp"

#include <algorithm>

namespace lah::sim {

Endpoint Nat::outbound(Time now, const Endpoint& to) {
  std::erase_if(mappings_, [&](const auto& item) { return now - item.second.used_at > timeout_; });
  const Endpoint key = kind_ == NatKind::kSymmetric ? to : Endpoint{};
  const auto [place, opened] = mappings_.try_emplace(key, Mapping{});
  Mapping& mapping = place->second;
  if (opened)
    mapping.port = last_port_ = last_port_ == UINT16_MAX ? 20'000 : last_port_ + 1;
  mapping.used_at = now;
  std::erase_if(mapping.sent_to, [&](const auto& item) { return now - item.second > timeout_; });
  mapping.sent_to[to] = now;
  Endpoint from = outside_;
  from.port = mapping.port;
  return from;
}

bool Nat::admits(Time now, uint16_t port, const Endpoint& from) const {
  const auto fresh = [&](Time used) { return now - used <= timeout_; };
  for (const auto& [key, mapping] : mappings_) {
    if (mapping.port != port || !fresh(mapping.used_at))
      continue;
    if (kind_ == NatKind::kFullCone)
      return true;
    return std::any_of(mapping.sent_to.begin(), mapping.sent_to.end(), [&](const auto& item) {
      return fresh(item.second) && item.first.ip == from.ip &&
             (kind_ == NatKind::kAddressRestricted || item.first.port == from.port);
    });
  }
  return false;
}

} // namespace lah::sim
