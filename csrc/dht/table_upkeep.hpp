#pragma once

#include <deque>
#include <map>

#include "dht/routing_table.hpp"

namespace lah::dht {

// Whom to ask so that the routing table stays confirmed and becomes better: every contact in turn,
// those that failed once soon again, and strangers heard of that may fill a slot or prove nearer
// than who holds it. Decides; its node asks.
class TableUpkeep {
public:
  explicit TableUpkeep(RoutingTable& table) : table_(table) {}

  // Somebody named this contact.
  void heard(const Contact& contact);
  // There is doubt about this contact of the table: it has its turn at `at`.
  void ask_again(const Contact& contact, Time at);

  // What to ask in this moment; called once a second.
  struct Plan {
    std::vector<Contact> pings;
    std::optional<Id> gap; // whose neighbourhood to ask for, from the closest contact
  };
  Plan plan(Time now, Rng& rng);

  static constexpr Duration kRound = 600 * kSecond; // in which every contact has its turn
  static constexpr Duration kYoung = 300 * kSecond; // a new node asks more

private:
  void plan_probes(Time now, Plan& plan);
  void plan_candidates(Time now, Plan& plan);
  void plan_gap(Time now, Rng& rng, Plan& plan);

  RoutingTable& table_;
  std::deque<Contact> candidates_;
  std::deque<uint64_t> asked_; // candidates of late, by a word of their ids
  std::multimap<Time, Contact> doubted_;
  std::optional<Time> began_;
  Time planned_at_ = 0;
  double probes_due_ = 0;
  size_t heard_ = 0; // candidates worth asking, since the last gap
  Time next_gap_ = 0;
  Duration gap_pause_ = 0;
};

} // namespace lah::dht
