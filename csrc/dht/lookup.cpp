#include "dht/lookup.hpp"

#include <algorithm>

namespace lah::dht {

Lookup::Lookup(const Id& target, const Id& own, Patience patience, size_t alpha)
    : target_(target), own_(own), patience_(patience), alpha_(alpha) {}

void Lookup::add(const Contact& contact) {
  if (contact.id == own_)
    return;
  const Id away = distance(contact.id, target_);
  const auto place = std::lower_bound(
      candidates_.begin(), candidates_.end(), away,
      [](const Candidate& candidate, const Id& value) { return candidate.distance < value; });
  if (place != candidates_.end() && place->distance == away)
    return;
  candidates_.insert(place, {away, contact, State::kNew, {}});
  if (candidates_.size() > Limits::kLookupCandidates)
    candidates_.pop_back();
}

std::optional<Contact> Lookup::next() {
  size_t in_flight = 0;
  for (const Candidate& candidate : candidates_)
    in_flight += candidate.state == State::kWaiting;
  if (in_flight >= alpha_)
    return std::nullopt;
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
    if (candidate.state == State::kNew) {
      candidate.state = State::kWaiting;
      ++asked_;
      return candidate.contact;
    }
  }
  return std::nullopt;
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
  if (Candidate* candidate = find(id); candidate && candidate->state != State::kAnswered)
    candidate->state = State::kFailed;
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
    rank += candidate.distance < away;
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
