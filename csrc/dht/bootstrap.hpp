#pragma once

#include <optional>
#include <vector>

#include "base/rng.hpp"
#include "base/time.hpp"
#include "dht/contact.hpp"

namespace lah::dht {

// When and whom to ask for a way into the network. All addresses are asked at once, so a dead seed
// delays nobody; attempts back off from one second to 40, jittered, so that a seed that comes
// back is not trampled. Success alone ends no back-off: the smaller part of a network cut in two
// finds its way back into itself each time.
class Bootstrap {
public:
  explicit Bootstrap(std::vector<Endpoint> seeds) : seeds_(std::move(seeds)) {}

  bool has_seeds() const { return !seeds_.empty(); }
  bool can_try() const { return has_seeds() || !remembered_.empty(); }
  bool tried() const { return tried_; }
  Time next_attempt() const { return next_attempt_; }

  // Addresses to ask now; plans the next attempt.
  std::vector<Endpoint> attempt(Time now, Rng& rng);
  // One seed, to check that the network has not split.
  std::vector<Endpoint> random_seed(Rng& rng) const;
  // Peers that were alive: ways back in when no seed is.
  void remember(std::vector<Endpoint> peers) { remembered_ = std::move(peers); }
  // A peer fell silent. It is tried again for an hour: if not it but the path to it broke, and with
  // it the network in two, either half finds the other as soon as the path is back.
  void lost(const Contact& peer, Time now);
  std::optional<Contact> pick_lost(Time now, Rng& rng);
  void found(const Id& peer);
  // A seed turned out to be this very node.
  void forget(const Endpoint& seed) { std::erase(seeds_, seed); }

private:
  std::vector<Endpoint> seeds_;
  std::vector<Endpoint> remembered_;
  struct Lost {
    Contact peer;
    Time since;
  };
  std::vector<Lost> lost_; // oldest first
  Time next_attempt_ = 0;
  Time attempted_at_ = 0;
  int attempts_ = 0; // of late
  bool tried_ = false;
};

} // namespace lah::dht
