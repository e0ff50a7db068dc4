// What one party can hold many addresses of: defences count subnets, not addresses.
#pragma once

#include <vector>

#include "base/endpoint.hpp"

namespace lah {

// An IPv4 /24 or an IPv6 /48.
struct Subnet {
  std::array<uint8_t, 7> bytes{}; // the first is the family
  auto operator<=>(const Subnet&) const = default;
};

Subnet subnet_of(const Endpoint& endpoint);

// Loopback, private and link-local addresses. A whole cluster may share one such subnet, and no
// stranger sends from there: limits per subnet do not hold for them.
bool is_local(const Endpoint& endpoint);

// Lets at most `most` members of a set be of one subnet.
class SubnetLimit {
public:
  explicit SubnetLimit(size_t most) : most_(most) {}
  // False: one too many of its subnet. Local addresses always pass.
  bool take(const Endpoint& endpoint);

private:
  size_t most_;
  std::vector<std::pair<Subnet, size_t>> taken_; // sets are small
};

} // namespace lah
