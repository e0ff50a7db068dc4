#pragma once

#include <optional>
#include <vector>

#include "crypto/identity.hpp"

namespace lah::crypto {

// X25519 secrets of pairs, shared by the identities of one thread: a peer's key is converted once
// for all of them, and two of them that talk to each other agree once. Direct-mapped and bounded;
// what is pushed out is computed again.
class KeyAgreements {
public:
  // Nothing if `peer` is no valid Ed25519 key.
  std::optional<ExchangeKey> agree(const Identity& own, const PublicKey& peer);

  static constexpr size_t kSlots = 8192; // 1.3 MiB, taken at the first use

private:
  struct Converted {
    PublicKey peer{};
    ExchangeKey key{};
  };
  struct Agreed {
    PublicKey low{}; // of the two keys
    PublicKey high{};
    ExchangeKey secret{};
  };

  std::vector<Converted> converted_;
  std::vector<Agreed> agreed_;
};

// X25519 of an identity and a peer, computed anew.
std::optional<ExchangeKey> agree(const Identity& own, const PublicKey& peer);

} // namespace lah::crypto
