#pragma once

#include <optional>

#include "base/limits.hpp"
#include "base/subnet.hpp"
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

  // `named_by`: the peer that told of it; zero if it is of our own table.
  void add(const Contact& contact, const Id& named_by = {});
  // Candidates to ask before any other, in this order.
  void ask_first(std::vector<Id> ids) { first_.assign(ids.rbegin(), ids.rend()); }
  void set_alpha(size_t alpha) { alpha_ = alpha; }
  // The next peer to ask, and it counts as asked; none while enough are in flight.
  std::optional<Contact> next();
  void answered(const Id& id, const Token& token);
  void overdue(const Id& id); // sent again
  void lapsed(const Id& id);  // and nothing came of that
  void failed(const Id& id);
  bool finished() const;
  // How many candidates are closer, whatever became of them; of a subnet no more than
  // Limits::kResultsPerSubnet count.
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
  enum class State : uint8_t { kNew, kWaiting, kOverdue, kLapsed, kAnswered, kFailed, kDropped };
  struct Candidate {
    Id distance;
    Contact contact;
    State state;
    Token token;
    uint64_t named_by; // a word of the id
    bool crowded;      // closer ones of its subnet, not failed, leave it no place
  };

  Candidate* find(const Id& id);
  const Contact& ask(Candidate& candidate);
  static uint8_t seat_of(const Endpoint& endpoint);
  size_t mates(const Endpoint& endpoint) const; // candidates of its subnet
  void place_crowded();
  void trim();
  bool is_passed_over(const Candidate& candidate) const;

  Id target_;
  Id own_;
  Patience patience_;
  size_t alpha_;
  size_t asked_ = 0;
  std::vector<Candidate> candidates_; // closest first, then the crowded, closest first
  std::vector<Id> first_;             // to be asked, the next one last
  size_t crowded_ = 0;
  // Candidates by a hash of their subnets: small counts say that none is crowded.
  std::array<uint8_t, 256> seats_{};
};

} // namespace lah::dht
