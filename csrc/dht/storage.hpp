#pragma once

#include <map>
#include <set>
#include <unordered_map>

#include "dht/record.hpp"

namespace lah::dht {

// The records a node holds for others and for itself: one per owner and key, until they expire.
class Storage {
public:
  struct PutResult {
    Verdict verdict;
    uint64_t seq; // of the record now held for this owner and key; 0 if none
  };
  // One page of a key's records, in order of their owners' keys.
  struct Page {
    std::vector<const Record*> records; // valid until the next put() or expire()
    bool more = false;
  };

  // Cheap checks first; `verifier` is asked last.
  PutResult put(const Record& record, WallMs wall, RecordVerifier& verifier);

  // Live records of owners above `after` (from the first one if null) whose encoded sizes fit
  // `budget` bytes, where a record costs its payload and `overhead`.
  Page page(const Id& key, const PublicKey* after, WallMs wall, size_t budget,
            size_t overhead) const;
  std::vector<Record> get(const Id& key, WallMs wall) const;

  // What one owner has here, the longest-lived first.
  std::vector<Record> owned_by(const PublicKey& owner, size_t most) const;

  void expire(WallMs wall);
  WallMs next_expiry() const; // UINT64_MAX if nothing is held

  size_t records() const { return expiries_.size(); }
  size_t bytes() const { return bytes_; }

private:
  using Owned = std::map<PublicKey, Record>;
  struct Expiry {
    WallMs at;
    Id key;
    PublicKey owner;
    auto operator<=>(const Expiry&) const = default;
  };

  bool has_room(const Record& record, const Owned* owned) const;

  std::unordered_map<Id, Owned, IdHash> keys_;
  std::map<PublicKey, size_t> per_owner_;
  std::set<Expiry> expiries_;
  size_t bytes_ = 0;
};

} // namespace lah::dht
