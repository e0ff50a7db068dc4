// A swarm lives through its share of misfortune, and is held to what the DHT promises.
#pragma once

#include "sim/fault_plan.hpp"
#include "sim/script.hpp"

namespace lah::sim {

struct SwarmOptions {
  uint64_t seed = 1;
  size_t nodes = 500;                // at least 20
  Duration duration = 600 * kSecond; // at least 6 min
  CipherKind cipher = CipherKind::kHash;
};

struct SwarmReport {
  size_t asked = 0; // gets of records whose owner lived
  size_t found = 0;
  size_t refused = 0;          // stores that no node took
  double bytes_per_second = 0; // sent by the mean node
  size_t operations_most = 0;  // open at one node
  uint64_t events = 0;
  std::string log_hash;
  std::vector<std::string> violations; // the first of them; none: all promises were kept
};

// Deterministic: all follows from the options. `progress` hears the virtual time once in a while.
SwarmReport check_swarm(const SwarmOptions& options,
                        const std::function<void(Time)>& progress = nullptr);

// Of a suite: 99.9 % of what was asked. One seed asks too little to be held to it alone.
inline constexpr double kFoundSuite = 0.999;
inline constexpr double kFoundSeed = 0.995;

} // namespace lah::sim
