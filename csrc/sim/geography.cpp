#include "sim/geography.hpp"

#include "sim/random.hpp"

namespace lah::sim {

Geography::Region Geography::draw(Rng& rng) {
  double place = uniform(rng);
  for (size_t region = 0; region + 1 < kRegions; ++region) {
    if (place < kShare[region])
      return static_cast<Region>(region);
    place -= kShare[region];
  }
  return static_cast<Region>(kRegions - 1);
}

} // namespace lah::sim
