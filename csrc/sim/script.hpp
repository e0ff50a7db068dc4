#pragma once

#include <functional>
#include <map>

#include "sim/virtual_network.hpp"

namespace lah::sim {

// What somebody outside does to a network, and when: actions in order of time, then of planning.
class Script {
public:
  using Action = std::function<void()>;
  void at(Time time, Action action) { actions_.emplace(time, std::move(action)); }
  // `action` at `first` and every `period` after, before `until`.
  void every(Duration period, Time first, Time until, const Action& action) {
    for (Time time = first; time < until; time += period)
      at(time, action);
  }

  // Plays the network until `until`, actions included; they may plan others.
  void play(VirtualNetwork& net, Time until) {
    while (!actions_.empty() && actions_.begin()->first <= until) {
      const auto next = actions_.begin();
      if (next->first > net.now())
        net.run_for(next->first - net.now());
      const Action action = std::move(next->second);
      actions_.erase(next);
      action();
    }
    net.run_for(until - net.now());
  }

private:
  std::multimap<Time, Action> actions_;
};

} // namespace lah::sim
