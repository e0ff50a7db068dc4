#pragma once

#include <optional>

#include "base/limits.hpp"
#include "base/rng.hpp"
#include "base/time.hpp"
#include "dht/contact.hpp"

namespace lah::dht {

// Kademlia's k-buckets. A contact enters only after it answered a query of ours, so nobody gets in
// by talking to us; it leaves after two failures in a row.
class RoutingTable {
public:
  explicit RoutingTable(const Id& own) : own_(own) {}

  // The contact answered a query of ours. A full bucket keeps it as a replacement.
  void confirm(const Contact& contact, Time now);
  void remove(const Id& id);
  // A query of ours went unanswered. True if the contact was in the table and has now left it.
  bool fail(const Contact& contact);
  // True if a stranger would find a place, so it is worth asking it something.
  bool wants(const Contact& contact) const;

  std::vector<Contact> closest(const Id& target, size_t count) const;
  // The least recently confirmed contact, if that was before `before`.
  std::optional<Contact> stalest(Time before) const;
  bool contains(const Id& id) const;
  size_t size() const { return size_; }

  // A lookup passed through this part of the key space.
  void touch(const Id& target, Time now);
  // An id in a bucket nobody looked into since `before`, and the bucket counts as touched.
  std::optional<Id> refresh_target(Time before, Time now, Rng& rng);

  // The first buckets cover half, a quarter, ... of the network: room there saves hops everywhere.
  static constexpr size_t capacity(size_t bucket) {
    return bucket < 4 ? 256U >> bucket : Limits::kBucket;
  }

private:
  struct Entry {
    Contact contact;
    Time confirmed_at;
    int failures;
  };
  struct Bucket {
    std::vector<Entry> entries;
    std::vector<Entry> replacements; // most recently confirmed last
    Time touched_at = std::numeric_limits<Time>::min();
  };

  Bucket& bucket_of(const Id& id);
  static Entry* find(std::vector<Entry>& entries, const Id& id);

  Id own_;
  std::vector<Bucket> buckets_; // by common prefix with own_
  size_t size_ = 0;
};

} // namespace lah::dht
