#include "dht/region.hpp"

#include <algorithm>

namespace lah::dht {

Region::Region(const Id& own, const std::vector<Contact>& closest) : own_(own) {
  if (closest.size() < Limits::kRegionKnown)
    return;
  double spacing = 0; // of neighbours, in units of a distance's first word
  for (size_t i = Limits::kReplicas; i <= std::min(closest.size(), kScales); ++i) {
    const Id away = distance(own, closest[i - 1].id);
    spacing = std::max(spacing, (static_cast<double>(away.words[0]) + 1) / static_cast<double>(i));
  }
  nodes_ = static_cast<size_t>(0x1p64 / spacing);
  const double reach = spacing * static_cast<double>(Limits::kRegionNodes);
  if (reach < 0x1p63)
    reach_ = static_cast<uint64_t>(reach);
}

} // namespace lah::dht
