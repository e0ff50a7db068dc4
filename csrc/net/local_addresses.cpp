#include "net/local_addresses.hpp"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include <memory>

namespace lah::net {

std::vector<Endpoint> local_addresses(uint16_t port) {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0)
    return {};
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(first, freeifaddrs);
  std::vector<Endpoint> addresses;
  for (const ifaddrs* at = first; at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr == nullptr)
      continue;
    if (at->ifa_addr->sa_family == AF_INET) {
      sockaddr_in v4{};
      std::memcpy(&v4, at->ifa_addr, sizeof(v4));
      addresses.push_back(Endpoint::v4(ntohl(v4.sin_addr.s_addr), port));
    } else if (at->ifa_addr->sa_family == AF_INET6) {
      sockaddr_in6 v6{};
      std::memcpy(&v6, at->ifa_addr, sizeof(v6));
      Endpoint endpoint;
      endpoint.port = port;
      std::memcpy(endpoint.ip.data(), v6.sin6_addr.s6_addr, endpoint.ip.size());
      addresses.push_back(endpoint);
    }
  }
  return addresses;
}

} // namespace lah::net
