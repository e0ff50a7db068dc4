#include "base/endpoint.hpp"

#include <arpa/inet.h>

namespace lah {
namespace {
constexpr std::array<uint8_t, 12> kV4Prefix{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
}

Endpoint Endpoint::v4(uint32_t address, uint16_t port) {
  Endpoint endpoint;
  std::memcpy(endpoint.ip.data(), kV4Prefix.data(), kV4Prefix.size());
  for (unsigned i = 0; i < 4; ++i)
    endpoint.ip[12 + i] = static_cast<uint8_t>(address >> (24 - 8 * i));
  endpoint.port = port;
  return endpoint;
}

Result<Endpoint> Endpoint::parse(std::string_view ip, uint16_t port) {
  const std::string text(ip);
  Endpoint endpoint;
  endpoint.port = port;
  if (inet_pton(AF_INET6, text.c_str(), endpoint.ip.data()) == 1)
    return endpoint;
  if (inet_pton(AF_INET, text.c_str(), endpoint.ip.data() + 12) == 1) {
    std::memcpy(endpoint.ip.data(), kV4Prefix.data(), kV4Prefix.size());
    return endpoint;
  }
  return Error{ErrorCode::kInvalidArgument, "expected an IPv4 or IPv6 address, got '" + text + "'"};
}

bool Endpoint::is_loopback() const {
  if (is_v4())
    return ip[12] == 127;
  for (size_t i = 0; i < 15; ++i)
    if (ip[i] != 0)
      return false;
  return ip[15] == 1;
}

bool Endpoint::is_private() const {
  if (is_loopback())
    return true;
  if (is_v4())
    return ip[12] == 10 || (ip[12] == 172 && (ip[13] & 0xf0) == 16) ||
           (ip[12] == 192 && ip[13] == 168) || (ip[12] == 169 && ip[13] == 254);
  return (ip[0] & 0xfe) == 0xfc || (ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80);
}

std::string Endpoint::ip_text() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (is_v4())
    inet_ntop(AF_INET, ip.data() + 12, text.data(), text.size());
  else
    inet_ntop(AF_INET6, ip.data(), text.data(), text.size());
  return text.data();
}

std::string Endpoint::text() const {
  const std::string host = is_v4() ? ip_text() : "[" + ip_text() + "]";
  return host + ":" + std::to_string(port);
}

} // namespace lah
