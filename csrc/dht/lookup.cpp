#include "dht/lookup.hpp"

#include <algorithm>

namespace lah::dht {

Lookup::Lookup(const Id& target, const Id& own, bool patient)
    : target_(target), own_(own), patient_(patient) {}

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
  if (in_flight >= Limits::kLookupAlpha)
    return std::nullopt;
  size_t rank = 0;
  for (Candidate& candidate : candidates_) {
    if (candidate.state == State::kFailed || candidate.state == State::kOverdue)
      continue;
    if (rank++ == Limits::kReplicas)
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

void Lookup::failed(const Id& id) {
  if (Candidate* candidate = find(id); candidate && candidate->state != State::kAnswered)
    candidate->state = State::kFailed;
}

bool Lookup::finished() const {
  size_t rank = 0;
  for (const Candidate& candidate : candidates_) {
    if (candidate.state == State::kFailed)
      continue;
    if (candidate.state == State::kOverdue && !patient_)
      continue;
    if (rank++ == Limits::kReplicas)
      break;
    if (candidate.state != State::kAnswered)
      return false;
  }
  // An impatient lookup with nothing but silence so far waits for the overdue after all.
  if (!patient_ && rank == 0)
    return std::none_of(candidates_.begin(), candidates_.end(), [](const Candidate& candidate) {
      return candidate.state == State::kOverdue;
    });
  return true;
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

} // namespace lah::dht
