#pragma once

#include <set>

#include "dht/beam_query.hpp"

namespace lah::dht {

// Finds the best experts of grids too large for an alive map. Reads the tuples that score well,
// several at a time, and looks below those that have come while it waits for the others. Tuples
// read before cost no packet.
class BeamSearch final : public NodeTask {
public:
  using Done = std::function<void(BeamResult)>;

  BeamSearch(Node& node, IsSuspect suspect);
  ~BeamSearch() override;
  BeamSearch(const BeamSearch&) = delete;
  BeamSearch& operator=(const BeamSearch&) = delete;

  // At once if everything needed was read before; else with what is known at the deadline. An
  // error, and no call of `done`, if the request is invalid.
  std::optional<Error> find(Time now, WallMs wall, BeamRequest request, Time deadline, Done done);

  void on_timer(Time now, WallMs wall) override;
  Time next_deadline() const override;

private:
  struct Search {
    BeamQuery query;
    Time deadline;
    Done done;
    std::set<LevelName> waiting; // being read for it
    size_t asked = 0;            // how many there were
    std::set<LevelName> failed;
  };
  using Searches = std::map<uint64_t, Search>;

  void advance(Searches::iterator search);
  void finish(Searches::iterator search);
  void on_read(const LevelName& name, bool read);

  Node& node_;
  IsSuspect suspect_;
  LevelCache cache_;
  Searches searches_;
  uint64_t last_search_ = 0;
};

} // namespace lah::dht
