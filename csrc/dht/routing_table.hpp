#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "base/limits.hpp"
#include "base/rng.hpp"
#include "base/rtt.hpp"
#include "base/subnet.hpp"
#include "base/time.hpp"
#include "dht/contact.hpp"

namespace lah::dht {

// How many contacts the first buckets hold, which cover half, a quarter, ... of the network: room
// there saves hops everywhere.
enum class TableSize : uint8_t {
  kDefault, // 256, 128, 64, 32, then Kademlia's k
  kLarge,   // 512, 512, 256, 128, 64, then k: most lookups among 10,000 nodes take one hop
};

// Kademlia's k-buckets. A contact enters only after it answered a query of ours, so nobody gets in
// by talking to us; it leaves after two failures in a row.
//
// A bucket of 2^c places has one slot for each value of the c bits that tell its contacts apart
// first. Until the bucket is full everybody is welcome; then an empty slot takes a contact from a
// crowded one, and of two in the same slot the nearer in time stays. The contacts closest to
// ourselves are exempt: records near us can only be found if we know all of them.
class RoutingTable {
public:
  explicit RoutingTable(const Id& own, TableSize table_size = TableSize::kDefault)
      : own_(own), table_size_(table_size) {}

  // The contact answered a query of ours. No `rtt` if the query was sent twice: the time is
  // ambiguous then (Karn's rule). A full bucket keeps who found no place as a replacement.
  void confirm(const Contact& contact, std::optional<Duration> rtt, Time now);
  void remove(const Id& id);
  // A query of ours went unanswered. True if the contact was in the table and has now left it.
  bool fail(const Contact& contact);

  // There is a place for this stranger if it answers.
  bool has_room(const Contact& contact) const;
  // There is, or it may prove the better choice for its slot: kChoices are tried for each.
  bool wants(const Contact& contact) const;
  static constexpr int kChoices = 5;

  std::vector<Contact> closest(const Id& target, size_t count) const;
  // Goes round the table, one contact each call; none if this one was confirmed since `before`.
  std::optional<Contact> next_probe(Time before);
  bool contains(const Id& id) const { return find(id) != nullptr; }
  // Of a member, else null.
  const RttEstimator* rtt(const Id& id) const {
    const Entry* entry = find(id);
    return entry == nullptr ? nullptr : &entry->rtt;
  }
  size_t size() const { return size_; }

  // A lookup passed through this part of the key space.
  void touch(const Id& target, Time now);
  // An id in a bucket nobody looked into since `before`, and the bucket counts as touched; so does
  // one seen here for the first time.
  std::optional<Id> refresh_target(Time before, Time now, Rng& rng);
  // An id in a slot drawn at random, if that slot is empty or has had few to choose from.
  std::optional<Id> gap(Rng& rng) const;

  size_t capacity(size_t bucket) const;

private:
  struct Entry { // one of several hundred: kept small
    Id id;
    PublicKey key;
    PuzzleNonce puzzle;
    Endpoint endpoint;
    uint8_t failures;
    uint8_t tried; // candidates this slot has had to choose from
    RttEstimator rtt;
    uint32_t confirmed_ms; // wraps after 49 days: only differences count

    Contact contact() const { return {key, puzzle, endpoint, id}; }
  };
  using Entries = std::vector<Entry>; // in order of ids: a slot is a range
  struct Bucket {
    Entries entries;
    std::vector<uint64_t> words; // the first of each entry's id: a search reads few cache lines
    Entries replacements;        // most recently confirmed last
    static constexpr Time kNew = std::numeric_limits<Time>::min();
    Time touched_at = kNew;
  };
  struct Place; // where a newcomer would go

  size_t index_of(const Id& id) const { return std::min<size_t>(common_prefix(own_, id), 255); }
  Bucket& bucket_of(const Id& id);
  const Entry* find(const Id& id) const;
  Entry* find(const Id& id) { return const_cast<Entry*>(std::as_const(*this).find(id)); }
  std::span<const Entry> slot(size_t bucket, const Id& id) const;
  Id random_in(size_t bucket, Rng& rng) const;
  bool is_diverse(const Contact& contact) const;
  bool is_nearest(size_t bucket, const Id& id) const;
  Place place(const Contact& contact) const;
  std::span<const Entry> crowd(size_t bucket) const;
  const Entry* worst(size_t bucket, std::span<const Entry> entries) const;
  void insert(Bucket& bucket, const Entry& entry);
  void spare(Bucket& bucket, const Entry& entry);
  static void append_closest(std::span<const Entry> entries, const Id& target, size_t count,
                             std::vector<Contact>& result);

  Id own_;
  TableSize table_size_;
  std::vector<Bucket> buckets_; // by common prefix with own_
  size_t size_ = 0;
  std::vector<Subnet> subnets_; // of every entry that is not private, in order: most are of one
  Id probed_;                   // the last contact next_probe() looked at
  size_t probed_bucket_ = 0;
};

} // namespace lah::dht
