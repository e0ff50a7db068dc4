#pragma once

#include <optional>

#include "base/endpoint.hpp"
#include "base/rng.hpp"
#include "base/time.hpp"
#include "dht/id.hpp"

namespace lah::dht {

// Proof that its bearer receives datagrams at the address it sends from: STORE needs one, and
// replies larger than 3x the request too.
using Token = std::array<uint8_t, 16>;

// SipHash of IP address and key under a secret of our own (Aumasson and Bernstein, 2012): every
// message we send carries one. A token lives between one and two rotations.
class TokenIssuer {
public:
  explicit TokenIssuer(Rng& rng);
  Token issue(const Endpoint& endpoint, const PublicKey& key) const;
  bool accepts(const Token& token, const Endpoint& endpoint, const PublicKey& key) const;
  void rotate_if_due(Time now, Rng& rng);

  static constexpr Duration kRotation = 300 * kSecond;

private:
  using Secret = std::array<uint8_t, 16>;
  static Token make(const Secret& secret, const Endpoint& endpoint, const PublicKey& key);

  Secret current_{};
  Secret previous_{};
  std::optional<Time> rotated_at_;
};

} // namespace lah::dht
