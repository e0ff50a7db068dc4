#pragma once

#include <optional>

#include "base/limits.hpp"
#include "dht/contact.hpp"
#include "dht/token.hpp"

namespace lah::dht {

// The iterative lookup of Kademlia, as a list of candidates in order of distance. Knows nothing of
// messages or time: it says whom to ask next and when it is over.
//
// A peer that is overdue no longer holds back the search: its place is taken by the next one, and
// its late answer still counts. An impatient lookup (a get) ends without the overdue; a patient one
// (a store, which needs the true closest) waits until they answer or their second chance lapses.
class Lookup {
public:
  enum class Patience : uint8_t {
    kImpatient,
    kPatient,
  };
  // `alpha`: requests in flight.
  Lookup(const Id& target, const Id& own, Patience patience, size_t alpha = Limits::kLookupAlpha);

  void add(const Contact& contact);
  // The next peer to ask, and it counts as asked; none while enough are in flight.
  std::optional<Contact> next();
  void answered(const Id& id, const Token& token);
  void overdue(const Id& id); // sent again
  void lapsed(const Id& id);  // and nothing came of that
  void failed(const Id& id);
  bool finished() const;
  // How many candidates are closer, whatever became of them.
  size_t rank(const Id& id) const;

  struct Found {
    Contact contact;
    Token token;
  };
  // The closest that answered, at most Limits::kReplicas.
  std::vector<Found> closest() const;
  // Those that answered and will be among the closest, unless closer ones are heard of.
  std::vector<Found> closest_so_far() const;
  // A late answer could still come from one that would be among the closest.
  bool awaits_late() const;
  const Id& target() const { return target_; }
  size_t asked() const { return asked_; }
  bool empty() const { return candidates_.empty(); }

private:
  enum class State : uint8_t { kNew, kWaiting, kOverdue, kLapsed, kAnswered, kFailed };
  struct Candidate {
    Id distance;
    Contact contact;
    State state;
    Token token;
  };

  Candidate* find(const Id& id);
  bool is_passed_over(const Candidate& candidate) const;

  Id target_;
  Id own_;
  Patience patience_;
  size_t alpha_;
  size_t asked_ = 0;
  std::vector<Candidate> candidates_; // closest first
};

} // namespace lah::dht
