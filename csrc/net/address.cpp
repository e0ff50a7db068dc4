#include "net/address.hpp"

namespace lah::net {

socklen_t to_sockaddr(const Endpoint& endpoint, bool v6, sockaddr_storage& out) {
  out = {};
  if (v6) {
    auto& address = reinterpret_cast<sockaddr_in6&>(out);
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(endpoint.port);
    std::memcpy(&address.sin6_addr, endpoint.ip.data(), 16);
    return sizeof(sockaddr_in6);
  }
  auto& address = reinterpret_cast<sockaddr_in&>(out);
  address.sin_family = AF_INET;
  address.sin_port = htons(endpoint.port);
  std::memcpy(&address.sin_addr, endpoint.ip.data() + 12, 4);
  return sizeof(sockaddr_in);
}

Endpoint from_sockaddr(const sockaddr_storage& in) {
  Endpoint endpoint;
  if (in.ss_family == AF_INET6) {
    const auto& address = reinterpret_cast<const sockaddr_in6&>(in);
    std::memcpy(endpoint.ip.data(), &address.sin6_addr, 16);
    endpoint.port = ntohs(address.sin6_port);
    return endpoint;
  }
  const auto& address = reinterpret_cast<const sockaddr_in&>(in);
  return Endpoint::v4(ntohl(address.sin_addr.s_addr), ntohs(address.sin_port));
}

} // namespace lah::net
