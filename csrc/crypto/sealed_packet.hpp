// The outer format of every UDP datagram:
//   [u8 version][u8 kind][32 B sender Ed25519 key][24 B nonce][XChaCha20-Poly1305 ciphertext + 16 B
//   tag]
// kHello and kHelloReply carry no ciphertext: they fetch the key of a peer known only by address.
#pragma once

#include <optional>

#include "crypto/key_agreements.hpp"
#include "crypto/pair_key_cache.hpp"

namespace lah::crypto {

enum class PacketKind : uint8_t { kSealed = 1, kHello = 2, kHelloReply = 3 };

inline constexpr uint8_t kPacketVersion = 1;
inline constexpr size_t kPacketHeader = 2 + 32 + 24;
inline constexpr size_t kPacketOverhead = kPacketHeader + 16;

struct Packet {
  PacketKind kind;
  PublicKey sender;
  std::array<uint8_t, 24> nonce;
  ByteView body; // ciphertext or signature, into the datagram
};

// Checks version, kind and length only.
Result<Packet> parse_packet(ByteView datagram);

// Seals and opens datagrams between static keys. The key of a pair is
// BLAKE2b(X25519(a, b), "lah-dht-1" | network id), so swarms of other network ids cannot be
// understood. No extra round trip, no forward secrecy: what travels here is public routing data and
// signed records.
class PacketSealer {
public:
  // `agreements`: shared with other identities of this thread, or none.
  PacketSealer(const Identity& identity, std::string_view network_id, Rng& rng,
               KeyAgreements* agreements = nullptr);

  Result<Buffer> seal(const PublicKey& receiver, ByteView plaintext);
  Result<Buffer> open(const Packet& packet);
  // Whether opening a packet of this peer costs no key agreement.
  bool knows(const PublicKey& peer) { return keys_.find(peer) != nullptr; }
  // The peer proved itself: its key is remembered apart from those of newcomers.
  void keep(const PublicKey& peer) { keys_.keep(peer); }

  // A HELLO is as long as its reply, so it cannot be used to amplify.
  Buffer hello(std::array<uint8_t, 24>& nonce);
  Buffer hello_reply(const Packet& hello) const;
  // True if `reply` was signed by its sender for our HELLO with this nonce.
  bool accept_hello_reply(const Packet& reply, const std::array<uint8_t, 24>& nonce) const;

  const Identity& identity() const { return identity_; }

private:
  std::optional<PairKey> agree(const PublicKey& peer) const;
  Buffer hello_statement(const PublicKey& asker, const PublicKey& answerer,
                         const std::array<uint8_t, 24>& nonce) const;

  const Identity& identity_;
  std::string network_id_;
  Rng& rng_;
  KeyAgreements* agreements_;
  PairKeyCache keys_;
};

} // namespace lah::crypto
