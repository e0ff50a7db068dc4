// Who a node is: one Ed25519 key pair. Its X25519 form seals datagrams and keys CURVE.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/rng.hpp"

namespace lah::crypto {

using PublicKey = std::array<uint8_t, 32>;   // Ed25519
using Signature = std::array<uint8_t, 64>;   // Ed25519
using ExchangeKey = std::array<uint8_t, 32>; // X25519
using Digest = std::array<uint8_t, 32>;      // SHA-256

// Must be called once before anything else of this folder; safe to call again, from any thread.
void initialize();

class Identity {
public:
  static Identity from_seed(const std::array<uint8_t, 32>& seed);
  static Identity generate(Rng& rng);

  const PublicKey& public_key() const { return public_; }
  const ExchangeKey& exchange_public() const { return exchange_public_; }
  const ExchangeKey& exchange_secret() const { return exchange_secret_; }
  Signature sign(ByteView message) const;

private:
  Identity() = default;

  PublicKey public_{};
  std::array<uint8_t, 64> secret_{};
  ExchangeKey exchange_public_{};
  ExchangeKey exchange_secret_{};
};

bool verify(const PublicKey& signer, ByteView message, const Signature& signature);

// X25519 form of a peer's Ed25519 key; an error for points of small order and malformed keys.
Result<ExchangeKey> exchange_key(const PublicKey& key);

Digest sha256(std::initializer_list<ByteView> parts);

// SipHash-2-4 with 128 bits of output: a MAC of short messages for whoever holds the key himself.
std::array<uint8_t, 16> siphash(const std::array<uint8_t, 16>& key, ByteView message);

} // namespace lah::crypto
