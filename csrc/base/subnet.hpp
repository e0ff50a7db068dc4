// What one party can hold many addresses of: defences count subnets, not addresses.
#pragma once

#include <vector>

#include "base/endpoint.hpp"

namespace lah {

// An IPv4 /24 or an IPv6 /48. Limits per subnet do not hold for private addresses: a whole cluster
// may share one such subnet, and no stranger sends from there.
struct Subnet {
  uint64_t word = 0; // the family and the address's first bytes
  auto operator<=>(const Subnet&) const = default;
};

inline Subnet subnet_of(const Endpoint& endpoint) {
  const bool v4 = endpoint.is_v4();
  const size_t end = v4 ? 15 : 6;
  Subnet subnet{v4 ? uint64_t{4} : uint64_t{6}};
  for (size_t i = v4 ? 12 : 0; i < end; ++i)
    subnet.word = subnet.word << 8 | endpoint.ip[i];
  return subnet;
}

// Lets at most `most` members of a set be of one subnet.
class SubnetLimit {
public:
  explicit SubnetLimit(size_t most) : most_(most) {}
  // False: one too many of its subnet. Private addresses always pass.
  bool take(const Endpoint& endpoint);

private:
  size_t most_;
  std::vector<std::pair<Subnet, size_t>> taken_; // sets are small
};

} // namespace lah
