#include "dht/token.hpp"

namespace lah::dht {

TokenIssuer::TokenIssuer(Rng& rng) {
  rng.fill(std::as_writable_bytes(std::span(current_)));
  rng.fill(std::as_writable_bytes(std::span(previous_)));
}

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
  rng.fill(std::as_writable_bytes(std::span(current_)));
}

} // namespace lah::dht
