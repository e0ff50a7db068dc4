#pragma once

#include <map>
#include <optional>
#include <set>

#include "base/subnet.hpp"
#include "dht/record.hpp"
#include "dht/region.hpp"

namespace lah::dht {

// The records a node holds for others and for itself: one per owner and key, until they expire.
//
// Bounded in all, per key, per owner and per subnet of those who brought them. When it is full, the
// subnet with the largest share gives up the record farthest from our id, but only for a closer
// record or for one of a subnet that has less: nobody is pushed out by those who merely came later,
// under however many names.
class Storage {
public:
  explicit Storage(const Id& own, size_t capacity = Limits::kStoredBytes)
      : own_(own), capacity_(capacity) {}
  Storage(const Storage&) = delete; // its indexes point into it
  Storage& operator=(const Storage&) = delete;

  struct PutResult {
    Verdict verdict;
    uint64_t seq;         // of the record now held for this owner and key; 0 if none
    bool changed = false; // stored, and not the same payload again
  };
  // One page of a key's records, in order of their owners' keys.
  struct Page {
    std::vector<const Record*> records; // valid until the next put() or expire()
    bool more = false;
  };

  // `source`: where it came from; none for our own, which no quota counts and nothing evicts.
  // Cheap checks first; `verifier` is asked last.
  PutResult put(const Record& record, const std::optional<Endpoint>& source, WallMs wall,
                RecordVerifier& verifier);

  // Live records of owners above `after` (from the first one if null) whose encoded sizes fit
  // `budget` bytes, where a record costs its payload, its certificate and `overhead`.
  Page page(const Id& key, const PublicKey* after, WallMs wall, size_t budget,
            size_t overhead) const;
  std::vector<Record> get(const Id& key, WallMs wall) const;
  const Record* find(const Id& key, const PublicKey& owner) const; // it may have expired

  // What one owner has here, the longest-lived first.
  std::vector<Record> owned_by(const PublicKey& owner, size_t most) const;

  void expire(WallMs wall);
  WallMs next_expiry() const; // UINT64_MAX if nothing is held

  // Records from elsewhere are refused.
  void set_region(const Region& region) { region_ = region; }

  size_t records() const { return expiries_.size(); }
  size_t bytes() const { return bytes_; } // of memory

  // What quotas count of a record: its fields as they travel.
  static size_t counted_bytes(const Record& record) {
    return record.payload.size() + record.certificate.size() + 144;
  }
  // What it costs in memory: with its indexes.
  static size_t memory_bytes(const Record& record) {
    return record.payload.size() + record.certificate.size() + 400;
  }

private:
  struct Held {
    Record record;
    std::optional<Endpoint> source;
  };
  using Owned = std::map<PublicKey, Held>;
  struct Key {
    Owned owned;
    size_t bytes = 0;
  };
  struct Owner {
    size_t records = 0;
    size_t bytes = 0;
  };
  struct Sooner {
    bool operator()(const Held* a, const Held* b) const;
  };
  struct Nearer {
    Id own;
    bool operator()(const Held* a, const Held* b) const;
  };
  struct Source {
    std::set<const Held*, Nearer> held;
    size_t bytes = 0;
  };

  Verdict check(const Record& record, const Held* old, WallMs wall) const;
  bool within_quotas(const Record& record, const Held* old,
                     const std::optional<Endpoint>& source) const;
  bool make_room(const Record& record, const Held* old, const std::optional<Endpoint>& source);
  const Held* victim(const Record& record, const Held* old, const Subnet& from) const;
  const Held* find_held(const Id& key, const PublicKey& owner) const;
  void insert(const Record& record, const std::optional<Endpoint>& source);
  void erase(const Held& held);
  size_t used_by(const Subnet& subnet) const;
  void reweigh(const Subnet& subnet, size_t before, size_t after);

  const Id own_;
  const size_t capacity_; // bytes of memory
  Region region_;
  std::map<Id, Key> keys_; // ordered: keys of records are chosen freely, and so would be collisions
  std::map<PublicKey, Owner> owners_;
  std::map<Subnet, Source> sources_;
  std::set<std::pair<size_t, Subnet>> weights_; // of sources_
  std::set<const Held*, Sooner> expiries_;
  size_t bytes_ = 0;
};

} // namespace lah::dht
