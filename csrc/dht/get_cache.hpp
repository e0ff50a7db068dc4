#pragma once

#include <list>
#include <unordered_map>

#include "dht/operation.hpp"

namespace lah::dht {

// What complete gets found, for later ones that are content with something that old. The least
// recently used goes first, at Limits::kCachedRecords or kCachedBytes.
class GetCache {
public:
  void keep(const Id& key, Consistency consistency, Time now, const GetResult& result);
  // A result of at least this consistency, no older than `max_age`; one without live records no
  // older than kAbsentAge either, so that nobody is hidden from this node for long.
  std::optional<GetResult> find(const Id& key, Consistency consistency, Time now, WallMs wall,
                                Duration max_age);
  void forget(const Id& key);
  size_t records() const { return records_; }

  static constexpr Duration kAbsentAge = 5 * kSecond;

private:
  struct Entry {
    Id key;
    Consistency consistency;
    Time found_at;
    GetResult result;
  };
  using Entries = std::list<Entry>;

  void erase(Entries::iterator entry);

  Entries entries_; // most recently used first
  std::unordered_map<Id, Entries::iterator, IdHash> by_key_;
  size_t records_ = 0; // an empty result counts as one
  size_t bytes_ = 0;
};

} // namespace lah::dht
