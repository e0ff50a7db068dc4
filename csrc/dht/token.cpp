#include "dht/token.hpp"

namespace lah::dht {
namespace {

// Twice as many random bits as SipHash takes: a generator that is weaker than it claims still
// leaves enough.
std::array<uint8_t, 16> draw_secret(Rng& rng) {
  std::array<uint8_t, 32> random{};
  rng.fill(std::as_writable_bytes(std::span(random)));
  const crypto::Digest digest = crypto::sha256({as_bytes(random)});
  std::array<uint8_t, 16> secret{};
  std::memcpy(secret.data(), digest.data(), secret.size());
  return secret;
}

} // namespace

TokenIssuer::TokenIssuer(Rng& rng) : current_(draw_secret(rng)), previous_(draw_secret(rng)) {}

Token TokenIssuer::make(const Secret& secret, const Endpoint& endpoint, const PublicKey& key) {
  std::array<uint8_t, 48> bearer;
  std::memcpy(bearer.data(), endpoint.ip.data(), 16);
  std::memcpy(bearer.data() + 16, key.data(), 32);
  return crypto::siphash(secret, as_bytes(bearer));
}

Token TokenIssuer::issue(const Endpoint& endpoint, const PublicKey& key) const {
  return make(current_, endpoint, key);
}

bool TokenIssuer::accepts(const Token& token, const Endpoint& endpoint,
                          const PublicKey& key) const {
  return token == make(current_, endpoint, key) || token == make(previous_, endpoint, key);
}

void TokenIssuer::rotate_if_due(Time now, Rng& rng) {
  if (!rotated_at_)
    rotated_at_ = now;
  if (now - *rotated_at_ < kRotation)
    return;
  rotated_at_ = now;
  previous_ = current_;
  current_ = draw_secret(rng);
}

} // namespace lah::dht
