#include "dht/ring_cover.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
double share(const Id& first, const Id& last) {
  return static_cast<double>(last.words[0] - first.words[0]) * 0x1p-64;
}
} // namespace

void RingCover::add(const Id& first, const Id& last) {
  if (last < first)
    return;
  Id begin = first;
  Id end = last;
  auto arc = arcs_.upper_bound(first);
  if (arc != arcs_.begin() && std::prev(arc)->second >= first)
    --arc;
  while (arc != arcs_.end() && arc->first <= end) {
    begin = std::min(begin, arc->first);
    end = std::max(end, arc->second);
    arc = arcs_.erase(arc);
  }
  arcs_[begin] = end;
}

bool RingCover::complete() const {
  return arcs_.size() == 1 && arcs_.begin()->first == Id{} && arcs_.begin()->second == kLast;
}

double RingCover::fraction() const {
  double sum = 0;
  for (const auto& [first, last] : arcs_)
    sum += share(first, last);
  return sum;
}

double RingCover::Gap::fraction() const {
  return share(after.value_or(Id{}), last);
}

std::vector<RingCover::Gap> RingCover::gaps() const {
  std::vector<Gap> gaps;
  std::optional<Id> after;
  for (const auto& [first, last] : arcs_) {
    if (after || first != Id{})
      gaps.push_back({after, first});
    after = last;
  }
  if (after != kLast)
    gaps.push_back({after, kLast});
  return gaps;
}

} // namespace lah::dht
