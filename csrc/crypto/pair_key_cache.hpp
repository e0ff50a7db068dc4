#pragma once

#include <unordered_map>

#include "base/limits.hpp"
#include "base/rng.hpp"
#include "crypto/identity.hpp"

namespace lah::crypto {

using PairKey = std::array<uint8_t, 32>;

// The keys shared with peers, of the recently used. Peers that proved themselves and those that did
// not are kept apart, so that no flood of fresh keys pushes a known peer out.
class PairKeyCache {
public:
  explicit PairKeyCache(Rng& rng)
      : proven_(rng.u64(), Limits::kSealKeyCache), fresh_(rng.u64(), Limits::kFreshSealKeys) {}

  const PairKey* find(const PublicKey& peer) {
    const PairKey* key = proven_.find(peer);
    return key != nullptr ? key : fresh_.find(peer);
  }
  const PairKey* put(const PublicKey& peer, const PairKey& key) { return fresh_.put(peer, key); }
  // The peer proved itself.
  void keep(const PublicKey& peer) {
    if (proven_.find(peer) != nullptr)
      return;
    if (const PairKey* key = fresh_.find(peer))
      proven_.put(peer, *key);
  }

private:
  struct KeyHash { // seeded: nobody chooses keys that share a bucket
    uint64_t seed;
    size_t operator()(const PublicKey& key) const noexcept {
      std::array<uint64_t, 2> words{};
      std::memcpy(words.data(), key.data() + 8, sizeof(words));
      return ((words[0] ^ seed) * 0x9e3779b97f4a7c15ULL) ^ (words[1] * (seed | 1));
    }
  };
  // Two generations: what was not used while one filled up is forgotten with the older one.
  class Generations {
  public:
    Generations(uint64_t seed, size_t most)
        : most_(most / 2), recent_(0, KeyHash{seed}), old_(0, KeyHash{seed}) {}
    const PairKey* find(const PublicKey& peer) {
      if (const auto found = recent_.find(peer); found != recent_.end())
        return &found->second;
      const auto found = old_.find(peer);
      return found == old_.end() ? nullptr : put(peer, PairKey(found->second));
    }
    const PairKey* put(const PublicKey& peer, const PairKey& key) {
      if (recent_.size() >= most_) {
        old_.clear();
        recent_.swap(old_);
      }
      return &recent_.insert_or_assign(peer, key).first->second;
    }

  private:
    size_t most_;
    std::unordered_map<PublicKey, PairKey, KeyHash> recent_;
    std::unordered_map<PublicKey, PairKey, KeyHash> old_;
  };

  Generations proven_;
  Generations fresh_;
};

} // namespace lah::crypto
