#include "sim/address_plan.hpp"

namespace lah::sim {
namespace {
// 11.0.0.0 up to 99.255.255.255: public, neither loopback nor anybody's private range.
constexpr uint32_t kFirstNet = 11 << 8;
constexpr uint32_t kNets = (100 - 11) << 8;
constexpr size_t kIpv6Every = 8;

uint32_t v4_of(const Endpoint& endpoint) {
  return static_cast<uint32_t>(endpoint.ip[12]) << 24 |
         static_cast<uint32_t>(endpoint.ip[13]) << 16 |
         static_cast<uint32_t>(endpoint.ip[14]) << 8 | endpoint.ip[15];
}
} // namespace

Endpoint planned_endpoint(size_t index) {
  if (index % kIpv6Every != kIpv6Every - 1) {
    const auto net = static_cast<uint32_t>(kFirstNet + index % kNets);
    const auto host = static_cast<uint32_t>(1 + index / kNets);
    return Endpoint::v4(net << 16 | host << 8 | 1, kNodePort);
  }
  Endpoint endpoint;
  endpoint.ip[0] = 0x2a;
  for (size_t i = 0; i < 4; ++i) // the low half names the /32
    endpoint.ip[2 + i] = static_cast<uint8_t>(index >> (i < 2 ? 8 - 8 * i : 40 - 8 * i));
  endpoint.ip[15] = 1;
  endpoint.port = kNodePort;
  return endpoint;
}

std::optional<size_t> planned_index(const Endpoint& endpoint) {
  size_t index = 0;
  if (endpoint.is_v4()) {
    const uint32_t address = v4_of(endpoint);
    const uint32_t host = address >> 8 & 0xff;
    if (host == 0 || address >> 16 < kFirstNet)
      return std::nullopt;
    index = (address >> 16) - kFirstNet + size_t{host - 1} * kNets;
  } else {
    index = size_t{endpoint.ip[2]} << 8 | endpoint.ip[3] | size_t{endpoint.ip[4]} << 24 |
            size_t{endpoint.ip[5]} << 16;
  }
  if (planned_endpoint(index).ip != endpoint.ip)
    return std::nullopt;
  return index;
}

Endpoint crowded_endpoint(size_t subnet, size_t index) {
  const auto host = static_cast<uint32_t>(index % 64'000);
  return Endpoint::v4(static_cast<uint32_t>(128 + subnet) << 24 | (1 + host / 250) << 8 |
                          (1 + host % 250),
                      static_cast<uint16_t>(kNodePort + index / 64'000));
}

} // namespace lah::sim
