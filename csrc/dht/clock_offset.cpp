#include "dht/clock_offset.hpp"

#include <algorithm>

#include "base/limits.hpp"

namespace lah::dht {
namespace {

int64_t difference(WallMs theirs, WallMs ours) {
  const auto farthest = static_cast<uint64_t>(ClockOffset::kFarthest);
  return theirs >= ours ? static_cast<int64_t>(std::min(theirs - ours, farthest))
                        : -static_cast<int64_t>(std::min(ours - theirs, farthest));
}

} // namespace

ClockOffset::Source ClockOffset::source_of(const Endpoint& from) {
  Source source{};
  const size_t whole = from.ip.size();
  const size_t bytes = from.is_private() ? whole : from.is_v4() ? 14 : 4;
  std::copy_n(from.ip.begin(), bytes, source.begin());
  if (from.is_loopback()) {
    source[16] = static_cast<uint8_t>(from.port >> 8);
    source[17] = static_cast<uint8_t>(from.port);
  }
  return source;
}

void ClockOffset::sample(Time now, const Endpoint& from, WallMs theirs, WallMs ours, Duration rtt) {
  if (votes_.size() >= Limits::kClockSources && now - sampled_at_ < kPauseWhenFull)
    return;
  std::erase_if(votes_, [&](const Vote& vote) { return now - vote.at > kLifetime; });
  const Source source = source_of(from);
  const auto of_source = [&](const Vote& vote) { return vote.source == source; };
  auto vote = std::find_if(votes_.begin(), votes_.end(), of_source);
  if (vote != votes_.end() && now - vote->at < kPause)
    return;
  sampled_at_ = now;
  if (vote == votes_.end() && votes_.size() < Limits::kClockSources)
    vote = votes_.emplace(votes_.end());
  else if (vote == votes_.end())
    vote = std::min_element(votes_.begin(), votes_.end(),
                            [](const Vote& a, const Vote& b) { return a.at < b.at; });
  *vote = {source, now, difference(theirs, ours) + rtt / kMillisecond / 2};
  update();
}

void ClockOffset::update() {
  std::vector<int64_t> offsets;
  for (const Vote& vote : votes_)
    offsets.push_back(vote.offset_ms);
  offsets.resize(std::max(offsets.size(), Limits::kClockVotes)); // our own clock: 0
  const auto middle = offsets.begin() + static_cast<std::ptrdiff_t>(offsets.size() / 2);
  std::nth_element(offsets.begin(), middle, offsets.end());
  int64_t median = *middle;
  if (offsets.size() % 2 == 0) { // between the two in the middle, the one nearer our own clock
    const int64_t below = *std::max_element(offsets.begin(), middle);
    median = std::abs(below) < std::abs(median) ? below : median;
  }
  ms_ = std::abs(median) < kTolerance ? 0 : median;
}

} // namespace lah::dht
