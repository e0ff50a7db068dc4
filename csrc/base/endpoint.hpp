#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace lah {

// An IP address (IPv4 as ::ffff:a.b.c.d) and a port. No name is ever resolved on the network
// thread.
struct Endpoint {
  std::array<uint8_t, 16> ip{};
  uint16_t port = 0;

  static Endpoint v4(uint32_t address, uint16_t port);
  // "127.0.0.1" or "::1"; a host name is an error.
  static Result<Endpoint> parse(std::string_view ip, uint16_t port);

  bool is_v4() const {
    static constexpr std::array<uint8_t, 12> kPrefix{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    return std::memcmp(ip.data(), kPrefix.data(), kPrefix.size()) == 0;
  }
  bool is_loopback() const;
  bool is_private() const; // loopback, link-local, RFC 1918, unique local: never routed far
  std::string ip_text() const;
  std::string text() const; // "127.0.0.1:8081", "[::1]:8081"

  auto operator<=>(const Endpoint&) const = default;
};

} // namespace lah

template <> struct std::hash<lah::Endpoint> {
  size_t operator()(const lah::Endpoint& endpoint) const noexcept {
    uint64_t low = 0;
    uint64_t high = 0;
    std::memcpy(&low, endpoint.ip.data(), 8);
    std::memcpy(&high, endpoint.ip.data() + 8, 8);
    return (low * 0x9e3779b97f4a7c15ULL) ^ (high + endpoint.port * 0xff51afd7ed558ccdULL);
  }
};
