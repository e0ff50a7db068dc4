// Where simulated nodes live, and how long light and routers take between those places.
#pragma once

#include <array>

#include "base/rng.hpp"
#include "base/time.hpp"

namespace lah::sim {

// Four regions. `share` is the part of all nodes that lives there; `rtt_ms` is the undisturbed
// round trip between two nodes, which the regions alone decide. The numbers are round ones of
// public internet paths; the median over random pairs of nodes is 110 ms, the mean 130 ms.
struct Geography {
  static constexpr size_t kRegions = 4;
  enum Region : uint8_t { kEurope, kNorthAmerica, kAsia, kSouthAmerica };

  static constexpr std::array<double, kRegions> kShare{0.35, 0.35, 0.20, 0.10};
  static constexpr std::array<std::array<int64_t, kRegions>, kRegions> kRttMs{
      {{30, 110, 200, 210}, {110, 50, 170, 150}, {200, 170, 70, 320}, {210, 150, 320, 60}}};

  // A region drawn by kShare.
  static Region draw(Rng& rng);
  static constexpr Duration rtt(Region a, Region b) { return milliseconds(kRttMs[a][b]); }
};

// One datagram's delay over its undisturbed one: uniform between these. Two datagrams of one path
// may overtake each other.
inline constexpr double kJitterMin = 0.9;
inline constexpr double kJitterMax = 1.2;

} // namespace lah::sim
