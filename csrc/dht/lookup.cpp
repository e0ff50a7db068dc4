#include "dht/lookup.hpp"

#include <algorithm>

namespace lah::dht {

Lookup::Lookup(const Id& target, const Id& own, Patience patience, size_t alpha)
    : target_(target), own_(own), patience_(patience), alpha_(alpha) {}

void Lookup::add(const Contact& contact, const Id& named_by) {
  if (contact.id == own_)
    return;
  const Id away = distance(contact.id, target_);
  const auto place = std::lower_bound(candidates_.begin(), candidates_.end(), away,
                                      [](const Candidate& candidate, const Id& value) {
                                        return !candidate.crowded && candidate.distance < value;
                                      });
  const auto same = [&](const Candidate& candidate) { return candidate.distance == away; };
  if ((place != candidates_.end() && same(*place)) ||
      std::any_of(candidates_.end() - static_cast<std::ptrdiff_t>(crowded_), candidates_.end(),
                  same))
    return;
  candidates_.insert(place, {away, contact, State::kNew, {}, named_by.words[0], false});
  if (!contact.endpoint.is_private() &&
      ++seats_[seat_of(contact.endpoint)] > Limits::kResultsPerSubnet &&
      mates(contact.endpoint) > Limits::kResultsPerSubnet)
    place_crowded();
  if (candidates_.size() >= Limits::kLookupCandidates + Limits::kFindContacts)
    trim();
}

uint8_t Lookup::seat_of(const Endpoint& endpoint) {
  return static_cast<uint8_t>(subnet_of(endpoint).word * 0x9e3779b97f4a7c15 >> 56);
}

size_t Lookup::mates(const Endpoint& endpoint) const {
  const Subnet subnet = subnet_of(endpoint);
  return static_cast<size_t>(std::ranges::count_if(candidates_, [&](const Candidate& candidate) {
    return subnet_of(candidate.contact.endpoint) == subnet;
  }));
}

void Lookup::place_crowded() {
  std::ranges::sort(candidates_, {}, &Candidate::distance);
  SubnetLimit subnets(Limits::kResultsPerSubnet);
  crowded_ = 0;
  for (Candidate& candidate : candidates_) {
    candidate.crowded =
        candidate.state != State::kFailed && !subnets.take(candidate.contact.endpoint);
    crowded_ += candidate.crowded;
  }
  std::stable_partition(candidates_.begin(), candidates_.end(),
                        [](const Candidate& candidate) { return !candidate.crowded; });
}

// First go those that failed; then, of those not asked, the last that the peer named who named most
// of them.
void Lookup::trim() {
  struct Share { // of one who named them
    uint64_t by;
    size_t left;
    size_t dropped;
  };
  std::vector<Share> shares;
  Share failed{};
  const auto share_of = [&](const Candidate& candidate) -> Share* {
    if (candidate.state != State::kNew)
      return candidate.state == State::kFailed ? &failed : nullptr;
    auto share = std::ranges::find(shares, candidate.named_by, &Share::by);
    if (share == shares.end())
      share = shares.insert(share, {candidate.named_by, 0, 0});
    return &*share;
  };
  for (const Candidate& candidate : candidates_)
    if (Share* share = share_of(candidate))
      ++share->left;
  for (size_t excess = candidates_.size() - Limits::kLookupCandidates; excess > 0; --excess) {
    Share& most = failed.left > 0 ? failed : *std::ranges::max_element(shares, {}, &Share::left);
    --most.left;
    ++most.dropped;
  }
  for (auto last = candidates_.rbegin(); last != candidates_.rend(); ++last)
    if (Share* share = share_of(*last); share != nullptr && share->dropped > 0) {
      --share->dropped;
      last->state = State::kDropped;
      crowded_ -= last->crowded;
      if (!last->contact.endpoint.is_private())
        --seats_[seat_of(last->contact.endpoint)];
    }
  std::erase_if(candidates_,
                [](const Candidate& candidate) { return candidate.state == State::kDropped; });
}

std::optional<Contact> Lookup::next() {
  if (candidates_.size() > Limits::kLookupCandidates)
    trim();
  size_t in_flight = 0;
  for (const Candidate& candidate : candidates_)
    in_flight += candidate.state == State::kWaiting;
  if (in_flight >= alpha_)
    return std::nullopt;
  for (; !first_.empty(); first_.pop_back())
    if (Candidate* candidate = find(first_.back());
        candidate != nullptr && candidate->state == State::kNew)
      return ask(*candidate);
  // The patient ask a few more than they need, in place of those that will not answer.
  const size_t most =
      Limits::kReplicas + (patience_ == Patience::kPatient ? Limits::kLookupSpares : 0);
  size_t rank = 0;
  for (Candidate& candidate : candidates_) {
    if (candidate.state == State::kFailed || candidate.state == State::kOverdue ||
        candidate.state == State::kLapsed)
      continue;
    if (rank++ == most)
      break;
    if (candidate.state == State::kNew)
      return ask(candidate);
  }
  return std::nullopt;
}

const Contact& Lookup::ask(Candidate& candidate) {
  candidate.state = State::kWaiting;
  ++asked_;
  return candidate.contact;
}

Lookup::Candidate* Lookup::find(const Id& id) {
  const auto found =
      std::find_if(candidates_.begin(), candidates_.end(),
                   [&](const Candidate& candidate) { return candidate.contact.id == id; });
  return found == candidates_.end() ? nullptr : &*found;
}

void Lookup::answered(const Id& id, const Token& token) {
  if (Candidate* candidate = find(id)) {
    candidate->state = State::kAnswered;
    candidate->token = token;
  }
}

void Lookup::overdue(const Id& id) {
  if (Candidate* candidate = find(id); candidate && candidate->state == State::kWaiting)
    candidate->state = State::kOverdue;
}

void Lookup::lapsed(const Id& id) {
  if (Candidate* candidate = find(id); candidate && candidate->state == State::kOverdue)
    candidate->state = State::kLapsed;
}

void Lookup::failed(const Id& id) {
  if (Candidate* candidate = find(id); candidate && candidate->state != State::kAnswered) {
    candidate->state = State::kFailed;
    if (crowded_ > 0)
      place_crowded();
  }
}

bool Lookup::is_passed_over(const Candidate& candidate) const {
  return candidate.state == State::kFailed || candidate.state == State::kLapsed ||
         (candidate.state == State::kOverdue && patience_ != Patience::kPatient);
}

bool Lookup::finished() const {
  size_t rank = 0;
  for (const Candidate& candidate : candidates_) {
    if (is_passed_over(candidate))
      continue;
    if (rank++ == Limits::kReplicas)
      break;
    if (candidate.state != State::kAnswered)
      return false;
  }
  // With nothing but silence so far, even the impatient wait until it is final.
  return rank > 0 || std::all_of(candidates_.begin(), candidates_.end(), [](const auto& candidate) {
           return candidate.state == State::kFailed;
         });
}

size_t Lookup::rank(const Id& id) const {
  const Id away = distance(id, target_);
  size_t rank = 0;
  for (const Candidate& candidate : candidates_)
    rank += !candidate.crowded && candidate.distance < away;
  return rank;
}

std::vector<Lookup::Found> Lookup::closest() const {
  std::vector<Found> found;
  for (const Candidate& candidate : candidates_) {
    if (candidate.state != State::kAnswered)
      continue;
    found.push_back({candidate.contact, candidate.token});
    if (found.size() == Limits::kReplicas)
      break;
  }
  return found;
}

std::vector<Lookup::Found> Lookup::closest_so_far() const {
  std::vector<Found> found;
  size_t rank = 0;
  for (const Candidate& candidate : candidates_) {
    if (is_passed_over(candidate) || candidate.state == State::kOverdue)
      continue;
    if (rank++ == Limits::kReplicas)
      break;
    if (candidate.state == State::kAnswered)
      found.push_back({candidate.contact, candidate.token});
  }
  return found;
}

bool Lookup::awaits_late() const {
  size_t answered = 0;
  for (const Candidate& candidate : candidates_) {
    if (candidate.state == State::kAnswered && ++answered == Limits::kReplicas)
      return false;
    if (candidate.state == State::kWaiting || candidate.state == State::kOverdue ||
        candidate.state == State::kLapsed)
      return true;
  }
  return false;
}

} // namespace lah::dht
