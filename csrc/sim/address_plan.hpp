// The addresses of simulated nodes: spread as those of real ones are, so that rules about subnets
// bite. Neighbours in number share no IPv4 /16 and no IPv6 /32; every eighth node has IPv6.
#pragma once

#include <optional>

#include "base/endpoint.hpp"

namespace lah::sim {

inline constexpr uint16_t kNodePort = 8081;

Endpoint planned_endpoint(size_t index);
// Whose address it is, whatever the port; none if the plan gives it to nobody.
std::optional<size_t> planned_index(const Endpoint& endpoint);

// The `index`-th address of a subnet that the plan gives to nobody: 128 + `subnet`.0.x.y, for
// identities that share a roof.
Endpoint crowded_endpoint(size_t subnet, size_t index);

} // namespace lah::sim
