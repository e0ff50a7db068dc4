#pragma once

#include "dht/cipher.hpp"

namespace lah::sim {

// Stands in for dht::SealedCipher where thousands of nodes would spend the run on X25519: packets
// of the same size, authenticated by SipHash-2-4-128 over both keys, nonce and text under a
// key made of the network id, sent in the clear. Worth nothing against an attacker who knows this
// file.
class HashCipher final : public dht::PacketCipher {
public:
  HashCipher(const crypto::PublicKey& own, std::string_view network_id, Rng& rng);

  Result<Buffer> seal(const crypto::PublicKey& receiver, ByteView plaintext) override;
  Result<Buffer> open(const crypto::Packet& packet) override;
  bool knows(const crypto::PublicKey&) override { return true; } // every packet costs one hash
  void keep(const crypto::PublicKey&) override {}
  Buffer hello(std::array<uint8_t, 24>& nonce) override;
  Buffer hello_reply(const crypto::Packet& hello) override;
  bool accept_hello_reply(const crypto::Packet& reply,
                          const std::array<uint8_t, 24>& nonce) override;

private:
  using Nonce = std::array<uint8_t, 24>;
  Buffer packet(crypto::PacketKind kind, const Nonce& nonce) const;
  using Tag = std::array<uint8_t, 16>;
  Tag tag(const crypto::PublicKey& from, const crypto::PublicKey& to, const Nonce& nonce,
          ByteView text) const;

  crypto::PublicKey own_;
  Tag key_; // the first half of the network id's SHA-256
  Rng& rng_;
};

} // namespace lah::sim
