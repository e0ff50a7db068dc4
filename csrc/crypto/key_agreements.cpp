#include "crypto/key_agreements.hpp"

#include <sodium.h>

#include <algorithm>

namespace lah::crypto {
namespace {

size_t slot_of(const PublicKey& a, const PublicKey& b) {
  uint64_t mixed[2];
  std::memcpy(&mixed[0], a.data() + 8, sizeof(uint64_t));
  std::memcpy(&mixed[1], b.data() + 16, sizeof(uint64_t));
  const uint64_t hash = (mixed[0] ^ (mixed[1] * 0x9e3779b97f4a7c15ULL)) * 0xff51afd7ed558ccdULL;
  return static_cast<size_t>(hash >> 32) % KeyAgreements::kSlots;
}

std::optional<ExchangeKey> multiply(const Identity& own, const ExchangeKey& theirs) {
  ExchangeKey secret{};
  if (crypto_scalarmult(secret.data(), own.exchange_secret().data(), theirs.data()) != 0)
    return std::nullopt;
  return secret;
}

} // namespace

std::optional<ExchangeKey> agree(const Identity& own, const PublicKey& peer) {
  const Result<ExchangeKey> theirs = exchange_key(peer);
  return theirs ? multiply(own, *theirs) : std::nullopt;
}

std::optional<ExchangeKey> KeyAgreements::agree(const Identity& own, const PublicKey& peer) {
  if (agreed_.empty()) {
    converted_.resize(kSlots);
    agreed_.resize(kSlots);
  }
  const auto& [low, high] = std::minmax(own.public_key(), peer);
  Agreed& agreed = agreed_[slot_of(low, high)];
  if (agreed.low == low && agreed.high == high)
    return agreed.secret;
  Converted& converted = converted_[slot_of(peer, peer)];
  if (converted.peer != peer) {
    const Result<ExchangeKey> key = exchange_key(peer);
    if (!key)
      return std::nullopt;
    converted = {peer, *key};
  }
  const std::optional<ExchangeKey> secret = multiply(own, converted.key);
  if (secret)
    agreed = {low, high, *secret};
  return secret;
}

} // namespace lah::crypto
