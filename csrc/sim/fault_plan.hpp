#pragma once

#include <vector>

#include "sim/virtual_network.hpp"

namespace lah::sim {

// Something that befalls a share of the nodes, drawn at its time.
struct Fault {
  enum class Kind : uint8_t {
    kDeath,     // for good
    kFreeze,    // as by SIGSTOP, for `lasts`
    kDeaf,      // nothing reaches them, for `lasts`
    kMute,      // nothing leaves them, for `lasts`
    kPartition, // nothing passes between them and the others, for `lasts`
  };
  Time at;
  Kind kind;
  double share;
  Duration lasts = 0;
};

// All that goes wrong in one run, drawn from its seed.
struct FaultPlan {
  Faults links;
  Duration half_life;        // of nodes; each that leaves is replaced by a new one
  double skewed;             // share of nodes whose clocks are wrong
  int64_t skew_ms_most;      // by up to so much, either way
  double hidden;             // share of nodes behind a NAT, of a random class
  Fault partition;           // of the whole network, once
  std::vector<Fault> faults; // all others, in order of time

  // For a network that has grown by `begin`; the last fault is over `2 min` before `end`.
  static FaultPlan draw(Rng& rng, Time begin, Time end);
};

} // namespace lah::sim
