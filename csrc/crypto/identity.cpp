#include "crypto/identity.hpp"

#include <sodium.h>

#include <cstdlib>

namespace lah::crypto {

void initialize() {
  if (sodium_init() < 0)
    std::abort(); // without a random device there is no safe way on
}

Identity Identity::from_seed(const std::array<uint8_t, 32>& seed) {
  initialize();
  Identity identity;
  crypto_sign_seed_keypair(identity.public_.data(), identity.secret_.data(), seed.data());
  crypto_sign_ed25519_sk_to_curve25519(identity.exchange_secret_.data(), identity.secret_.data());
  crypto_scalarmult_base(identity.exchange_public_.data(), identity.exchange_secret_.data());
  return identity;
}

Identity Identity::generate(Rng& rng) {
  std::array<uint8_t, 32> seed{};
  rng.fill(std::as_writable_bytes(std::span(seed)));
  Identity identity = from_seed(seed);
  sodium_memzero(seed.data(), seed.size());
  return identity;
}

Signature Identity::sign(ByteView message) const {
  Signature signature{};
  crypto_sign_detached(signature.data(), nullptr, u8(message), message.size(), secret_.data());
  return signature;
}

bool verify(const PublicKey& signer, ByteView message, const Signature& signature) {
  return crypto_sign_verify_detached(signature.data(), u8(message), message.size(),
                                     signer.data()) == 0;
}

Result<ExchangeKey> exchange_key(const PublicKey& key) {
  ExchangeKey converted{};
  if (crypto_sign_ed25519_pk_to_curve25519(converted.data(), key.data()) != 0)
    return Error{ErrorCode::kProtocol, "not an Ed25519 public key"};
  return converted;
}

Digest sha256(std::initializer_list<ByteView> parts) {
  crypto_hash_sha256_state state;
  crypto_hash_sha256_init(&state);
  for (ByteView part : parts)
    crypto_hash_sha256_update(&state, u8(part), part.size());
  Digest digest{};
  crypto_hash_sha256_final(&state, digest.data());
  return digest;
}

std::array<uint8_t, 16> siphash(const std::array<uint8_t, 16>& key, ByteView message) {
  static_assert(crypto_shorthash_siphashx24_BYTES == 16 &&
                crypto_shorthash_siphashx24_KEYBYTES == 16);
  std::array<uint8_t, 16> out{};
  crypto_shorthash_siphashx24(out.data(), u8(message), message.size(), key.data());
  return out;
}

} // namespace lah::crypto
