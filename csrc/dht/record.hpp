// A record: a small value signed by its owner, alive until it expires.
#pragma once

#include <unordered_set>

#include "base/limits.hpp"
#include "base/time.hpp"
#include "dht/id.hpp"

namespace lah::dht {

// Many owners may hold a record under the same key, one each; a higher seq replaces the owner's
// last one. An empty payload is a tombstone: the owner took the record back.
struct Record {
  Id key;
  PublicKey owner{};
  uint64_t seq = 0;
  WallMs expiry_ms = 0;
  Buffer payload = {};
  crypto::Signature signature{};
  Buffer certificate = {}; // the owner's, encoded, in networks that ask for one; else empty

  bool is_tombstone() const { return payload.empty(); }
  bool operator==(const Record&) const = default;
};

Record sign_record(const crypto::Identity& owner, std::string_view network_id, const Id& key,
                   uint64_t seq, WallMs expiry_ms, Buffer payload);

// What became of a record offered for storage. The values travel in STORE replies.
enum class Verdict : uint8_t {
  kStored = 0,
  kKept = 1, // already held, same seq: nothing changes, nothing is extended
  kBadToken = 2,
  kBadSignature = 3,
  kExpired = 4,
  kTooLong = 5, // expires more than Limits::kRecordLifetimeMs from now
  kStale = 6,   // a record of a higher seq is held
  kFull = 7,
  kTooBig = 8,
  kOutOfRegion = 9, // too far from the node's id to be its business
  kNotAdmitted = 10,
};
inline constexpr uint8_t kVerdictMax = 10;

constexpr bool is_held(Verdict verdict) {
  return verdict == Verdict::kStored || verdict == Verdict::kKept;
}

// Signatures found to be good: the same record comes from eight replicas, again and again, and a
// verification costs 40 us. Nodes of one thread share them.
class VerifiedRecords {
public:
  // `digest`: SHA-256 of statement and signature.
  bool contains(const Id& digest) const {
    return recent_.contains(digest) || older_.contains(digest);
  }
  void add(const Id& digest);

private:
  std::unordered_set<Id, IdHash> recent_;
  std::unordered_set<Id, IdHash> older_; // than the last Limits::kVerifiedRecords / 2
};

class RecordVerifier {
public:
  // `shared` must outlive it; none: it remembers for itself.
  explicit RecordVerifier(std::string_view network_id, VerifiedRecords* shared = nullptr)
      : network_id_(network_id), shared_(shared) {}
  bool verify(const Record& record);
  const std::string& network_id() const { return network_id_; }

private:
  std::string network_id_;
  VerifiedRecords own_;
  VerifiedRecords* shared_;
};

} // namespace lah::dht
