#include "dht/bootstrap.hpp"

#include <algorithm>

namespace lah::dht {

std::vector<Endpoint> Bootstrap::attempt(Time now, Rng& rng) {
  const Duration pause = std::min(kSecond << std::min(failures_, 6), 60 * kSecond);
  ++failures_;
  tried_ = true;
  const auto jitter = static_cast<Duration>(rng.below(static_cast<uint64_t>(pause) / 2));
  next_attempt_ = now + pause * 3 / 4 + jitter;
  std::vector<Endpoint> targets = seeds_;
  for (const Endpoint& peer : remembered_)
    if (std::find(targets.begin(), targets.end(), peer) == targets.end())
      targets.push_back(peer);
  return targets;
}

std::vector<Endpoint> Bootstrap::random_seed(Rng& rng) const {
  if (seeds_.empty())
    return {};
  return {seeds_[rng.below(seeds_.size())]};
}

void Bootstrap::succeeded() {
  failures_ = 0;
}

} // namespace lah::dht
