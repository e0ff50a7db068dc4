#include "sim/fault_plan.hpp"

#include <algorithm>

#include "sim/random.hpp"

namespace lah::sim {
namespace {

Time between(Rng& rng, Time least, Time most) {
  return least + static_cast<Time>(rng.below(static_cast<uint64_t>(most - least) + 1));
}

double between(Rng& rng, double least, double most) {
  return least + (most - least) * uniform(rng);
}

Faults draw_links(Rng& rng) {
  Faults links = rng.below(2) == 0 ? Faults::geographic()
                                   : Faults{between(rng, milliseconds(5), milliseconds(20)),
                                            between(rng, milliseconds(30), milliseconds(150))};
  links.loss = 0.10;
  links.duplicate = 0.01;
  links.detour = between(rng, 0.0, 0.05);
  return links;
}

} // namespace

FaultPlan FaultPlan::draw(Rng& rng, Time begin, Time end) {
  FaultPlan plan{};
  plan.links = draw_links(rng);
  plan.half_life = 600 * kSecond;
  plan.skewed = 0.1;
  plan.skew_ms_most = 300'000;
  plan.hidden = 0.1;

  const Time last = end - 120 * kSecond;
  plan.faults.push_back({between(rng, begin, begin + 60 * kSecond), Fault::Kind::kDeath, 0.2});
  const Time cut = between(rng, begin + 120 * kSecond, begin + 180 * kSecond);
  plan.partition = {cut, Fault::Kind::kPartition, between(rng, 0.1, 0.5),
                    between(rng, 10 * kSecond, std::min(last - cut, 120 * kSecond))};
  for (Time at = begin; at < last; at += between(rng, 10 * kSecond, 30 * kSecond)) {
    constexpr std::array kKinds{Fault::Kind::kFreeze, Fault::Kind::kDeaf, Fault::Kind::kMute};
    plan.faults.push_back({at, kKinds[rng.below(kKinds.size())], between(rng, 0.005, 0.02),
                           between(rng, 5 * kSecond, 30 * kSecond)});
  }
  std::stable_sort(plan.faults.begin(), plan.faults.end(),
                   [](const Fault& a, const Fault& b) { return a.at < b.at; });
  return plan;
}

} // namespace lah::sim
