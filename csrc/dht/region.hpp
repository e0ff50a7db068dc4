#pragma once

#include <vector>

#include "base/limits.hpp"
#include "dht/contact.hpp"

namespace lah::dht {

// How many nodes there seem to be, and how far from our id keys may lie that we are asked to hold:
// both from the distances of our closest contacts.
//
// The estimate errs towards a small network and a wide region. It takes the sparsest of many
// scales: contacts a table lacks make the network look smaller, and identities made to crowd
// around our id make only the nearest scales look dense.
class Region {
public:
  Region() = default; // of an unknown network: everything
  // `closest`: contacts in order of their distance.
  Region(const Id& own, const std::vector<Contact>& closest);

  bool contains(const Id& key) const { return distance(own_, key).words[0] <= reach_; }
  // At least this many; 0 if too few are known to say.
  size_t nodes() const { return nodes_; }

  static constexpr size_t kScales = 64; // contacts to look at

private:
  Id own_{};
  uint64_t reach_ = UINT64_MAX; // of the first word of a distance
  size_t nodes_ = 0;
};

} // namespace lah::dht
