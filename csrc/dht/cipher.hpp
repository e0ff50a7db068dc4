#pragma once

#include "crypto/sealed_packet.hpp"

namespace lah::dht {

// What a node needs from crypto/sealed_packet. Behind an interface so that a simulation of many
// nodes can pay for a keyed hash instead of an X25519 per pair; sizes are the same.
class PacketCipher {
public:
  virtual ~PacketCipher() = default;
  virtual Result<Buffer> seal(const crypto::PublicKey& receiver, ByteView plaintext) = 0;
  virtual Result<Buffer> open(const crypto::Packet& packet) = 0;
  // Whether opening a packet of this peer is cheap.
  virtual bool knows(const crypto::PublicKey& peer) = 0;
  // The peer proved itself: no flood of newcomers makes us forget it.
  virtual void keep(const crypto::PublicKey& peer) = 0;
  virtual Buffer hello(std::array<uint8_t, 24>& nonce) = 0;
  virtual Buffer hello_reply(const crypto::Packet& hello) = 0;
  virtual bool accept_hello_reply(const crypto::Packet& reply,
                                  const std::array<uint8_t, 24>& nonce) = 0;
};

class SealedCipher final : public PacketCipher {
public:
  SealedCipher(const crypto::Identity& identity, std::string_view network_id, Rng& rng,
               crypto::KeyAgreements* agreements = nullptr)
      : sealer_(identity, network_id, rng, agreements) {}

  Result<Buffer> seal(const crypto::PublicKey& receiver, ByteView plaintext) override {
    return sealer_.seal(receiver, plaintext);
  }
  Result<Buffer> open(const crypto::Packet& packet) override { return sealer_.open(packet); }
  bool knows(const crypto::PublicKey& peer) override { return sealer_.knows(peer); }
  void keep(const crypto::PublicKey& peer) override { sealer_.keep(peer); }
  Buffer hello(std::array<uint8_t, 24>& nonce) override { return sealer_.hello(nonce); }
  Buffer hello_reply(const crypto::Packet& hello) override { return sealer_.hello_reply(hello); }
  bool accept_hello_reply(const crypto::Packet& reply,
                          const std::array<uint8_t, 24>& nonce) override {
    return sealer_.accept_hello_reply(reply, nonce);
  }

private:
  crypto::PacketSealer sealer_;
};

} // namespace lah::dht
