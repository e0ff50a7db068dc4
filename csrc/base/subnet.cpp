#include "base/subnet.hpp"

#include <algorithm>

namespace lah {

bool SubnetLimit::take(const Endpoint& endpoint) {
  if (endpoint.is_private())
    return true;
  const Subnet subnet = subnet_of(endpoint);
  const auto found = std::find_if(taken_.begin(), taken_.end(),
                                  [&](const auto& entry) { return entry.first == subnet; });
  if (found == taken_.end()) {
    taken_.emplace_back(subnet, 1);
    return true;
  }
  if (found->second >= most_)
    return false;
  ++found->second;
  return true;
}

} // namespace lah
