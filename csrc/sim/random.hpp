#pragma once

#include "base/rng.hpp"

namespace lah::sim {

// Uniform in [0, 1).
inline double uniform(Rng& rng) {
  return static_cast<double>(rng.u64() >> 11) * 0x1p-53;
}

// Draws only if there is a choice, so that a fault that is off costs nothing.
inline bool chance(Rng& rng, double probability) {
  return probability > 0 && uniform(rng) < probability;
}

} // namespace lah::sim
