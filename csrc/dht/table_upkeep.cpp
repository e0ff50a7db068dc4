#include "dht/table_upkeep.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
constexpr Duration kRoundMin = 60 * kSecond; // of a small table
constexpr size_t kAskedKept = 128;
constexpr size_t kYoungPings = 4; // a second
constexpr size_t kPings = 2;
constexpr size_t kDoubtedPings = 4;
constexpr Duration kYoungGapPause = kSecond;
constexpr Duration kGapPause = 4 * kSecond;
constexpr Duration kGapPauseMax = 600 * kSecond;
} // namespace

void TableUpkeep::heard(const Contact& contact) {
  if (candidates_.size() >= Limits::kTableCandidates || !table_.wants(contact) ||
      std::find(asked_.begin(), asked_.end(), contact.id.words[1]) != asked_.end())
    return;
  ++heard_;
  if (asked_.size() >= kAskedKept)
    asked_.pop_front();
  asked_.push_back(contact.id.words[1]);
  candidates_.push_back(contact);
}

void TableUpkeep::ask_again(const Contact& contact, Time at) {
  if (doubted_.size() < Limits::kDoubtedContacts)
    doubted_.emplace(at, contact);
}

TableUpkeep::Plan TableUpkeep::plan(Time now, Rng& rng) {
  Plan plan;
  if (table_.size() == 0)
    return plan;
  if (!began_)
    began_ = now;
  plan_probes(now, plan);
  plan_candidates(now, plan);
  plan_gap(now, rng, plan);
  planned_at_ = now;
  return plan;
}

// A contact is passed over if it was confirmed within the last two fifths of a round: at its next
// turn that is one and two fifths old, less than 15 minutes.
void TableUpkeep::plan_probes(Time now, Plan& plan) {
  const auto size = static_cast<Duration>(table_.size());
  const Duration round = std::clamp(size * kSecond, kRoundMin, kRound);
  const Duration passed = std::min(now - planned_at_, 2 * kSecond);
  probes_due_ +=
      static_cast<double>(passed) * static_cast<double>(size) / static_cast<double>(round);
  for (; probes_due_ >= 1; probes_due_ -= 1)
    if (const auto due = table_.next_probe(now - round / 5 * 2))
      plan.pings.push_back(*due);
  size_t most = kDoubtedPings; // many fall silent at once where a line breaks
  for (; most > 0 && !doubted_.empty() && doubted_.begin()->first <= now;
       doubted_.erase(doubted_.begin()))
    if (const Contact& contact = doubted_.begin()->second; table_.contains(contact.id)) {
      plan.pings.push_back(contact);
      --most;
    }
}

void TableUpkeep::plan_candidates(Time now, Plan& plan) {
  size_t most = now - *began_ < kYoung ? kYoungPings : kPings;
  for (; most > 0 && !candidates_.empty(); candidates_.pop_front())
    if (table_.wants(candidates_.front())) { // not all of them still are
      plan.pings.push_back(candidates_.front());
      --most;
    }
}

// While gaps yield candidates they are looked into often; a small network has gaps nobody can fill.
void TableUpkeep::plan_gap(Time now, Rng& rng, Plan& plan) {
  if (now < next_gap_ || candidates_.size() > Limits::kTableCandidates / 2)
    return;
  plan.gap = table_.gap(rng);
  if (!plan.gap)
    return; // that slot was fine
  const Duration least = now - *began_ < kYoung ? kYoungGapPause : kGapPause;
  gap_pause_ = heard_ > 0 ? least : std::clamp(2 * gap_pause_, least, kGapPauseMax);
  next_gap_ = now + gap_pause_;
  heard_ = 0;
}

} // namespace lah::dht
