#pragma once

#include <map>
#include <optional>
#include <vector>

#include "dht/id.hpp"

namespace lah::dht {

// Which owners' records have been read, where records come in order of their owners' keys and from
// several places at once: a set of arcs of the ring of keys.
class RingCover {
public:
  void add(const Id& first, const Id& last); // both included; first <= last
  bool complete() const;
  double fraction() const; // of the ring

  // What is left to be read: behind `after`, or from the beginning, up to and with `last`.
  struct Gap {
    std::optional<Id> after;
    Id last;
    double fraction() const;
  };
  std::vector<Gap> gaps() const;

  static constexpr Id kLast{{UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}};
  // The position a fraction of the way into the ring.
  static Id at(uint64_t top_bits) { return {{top_bits, 0, 0, 0}}; }

private:
  std::map<Id, Id> arcs_; // first -> last, apart from each other
};

} // namespace lah::dht
