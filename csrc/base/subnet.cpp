#include "base/subnet.hpp"

#include <algorithm>

namespace lah {

Subnet subnet_of(const Endpoint& endpoint) {
  Subnet subnet;
  const bool v4 = endpoint.is_v4();
  subnet.bytes[0] = v4 ? 4 : 6;
  std::copy_n(endpoint.ip.begin() + (v4 ? 12 : 0), v4 ? 3 : 6, subnet.bytes.begin() + 1);
  return subnet;
}

bool is_local(const Endpoint& endpoint) {
  if (endpoint.is_loopback())
    return true;
  const auto& ip = endpoint.ip;
  if (endpoint.is_v4())
    return ip[12] == 10 || (ip[12] == 172 && (ip[13] & 0xf0) == 16) ||
           (ip[12] == 192 && ip[13] == 168) || (ip[12] == 169 && ip[13] == 254);
  return (ip[0] & 0xfe) == 0xfc || (ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80);
}

bool SubnetLimit::take(const Endpoint& endpoint) {
  if (is_local(endpoint))
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
