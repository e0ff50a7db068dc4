#include "dht/bootstrap.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
constexpr size_t kLostMax = 32;
// With its jitter less than a minute: so long may a network take to heal.
constexpr Duration kPauseMost = 40 * kSecond;
constexpr Duration kForgotten = 120 * kSecond;
constexpr Duration kLostFor = 3600 * kSecond;
} // namespace

std::vector<Endpoint> Bootstrap::attempt(Time now, Rng& rng) {
  if (now - attempted_at_ > kForgotten)
    attempts_ = 0;
  attempted_at_ = now;
  const Duration pause = std::min(kSecond << std::min(attempts_, 6), kPauseMost);
  ++attempts_;
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

void Bootstrap::lost(const Contact& peer, Time now) {
  found(peer.id);
  if (lost_.size() >= kLostMax)
    lost_.erase(lost_.begin());
  lost_.push_back({peer, now});
}

void Bootstrap::found(const Id& peer) {
  std::erase_if(lost_, [&](const Lost& lost) { return lost.peer.id == peer; });
}

std::optional<Contact> Bootstrap::pick_lost(Time now, Rng& rng) {
  std::erase_if(lost_, [&](const Lost& lost) { return now - lost.since > kLostFor; });
  if (lost_.empty())
    return std::nullopt;
  return lost_[rng.below(lost_.size())].peer;
}

} // namespace lah::dht
