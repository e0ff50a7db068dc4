#include "crypto/sealed_packet.hpp"

#include <sodium.h>

namespace lah::crypto {
namespace {

void put_header(Buffer& out, PacketKind kind, const PublicKey& sender,
                const std::array<uint8_t, 24>& nonce) {
  out.push_back(static_cast<std::byte>(kPacketVersion));
  out.push_back(static_cast<std::byte>(kind));
  append(out, as_bytes(sender));
  append(out, as_bytes(nonce));
}

Buffer statement_buffer(std::string_view domain) {
  Buffer out;
  append(out, as_bytes(domain));
  return out;
}

} // namespace

Result<Packet> parse_packet(ByteView datagram) {
  if (datagram.size() < kPacketHeader || datagram.size() > Limits::kDatagramBytes)
    return Error{ErrorCode::kProtocol, "datagram of a wrong length"};
  const auto kind = std::to_integer<uint8_t>(datagram[1]);
  if (std::to_integer<uint8_t>(datagram[0]) != kPacketVersion || kind < 1 || kind > 3)
    return Error{ErrorCode::kProtocol, "datagram of an unknown version or kind"};
  Packet packet{static_cast<PacketKind>(kind), {}, {}, datagram.subspan(kPacketHeader)};
  std::memcpy(packet.sender.data(), datagram.data() + 2, packet.sender.size());
  std::memcpy(packet.nonce.data(), datagram.data() + 34, packet.nonce.size());
  const size_t body = packet.body.size();
  const bool sealed = packet.kind == PacketKind::kSealed;
  if (sealed ? body < 16 : body != sizeof(Signature))
    return Error{ErrorCode::kProtocol, "datagram of a wrong length"};
  return packet;
}

PacketSealer::PacketSealer(const Identity& identity, std::string_view network_id, Rng& rng,
                           KeyAgreements* agreements)
    : identity_(identity), network_id_(network_id), rng_(rng), agreements_(agreements), keys_(rng) {
}

std::optional<PairKey> PacketSealer::agree(const PublicKey& peer) const {
  const std::optional<ExchangeKey> shared =
      agreements_ != nullptr ? agreements_->agree(identity_, peer) : crypto::agree(identity_, peer);
  if (!shared)
    return std::nullopt;
  PairKey key{};
  Buffer domain = statement_buffer("lah-dht-1");
  append(domain, as_bytes(network_id_));
  crypto_generichash(key.data(), key.size(), u8(ByteView(domain)), domain.size(), shared->data(),
                     shared->size());
  return key;
}

Result<Buffer> PacketSealer::seal(const PublicKey& receiver, ByteView plaintext) {
  const PairKey* key = keys_.find(receiver);
  if (key == nullptr) {
    const std::optional<PairKey> agreed = agree(receiver);
    if (!agreed)
      return Error{ErrorCode::kInvalidArgument, "not an Ed25519 public key"};
    key = keys_.put(receiver, *agreed);
  }
  if (plaintext.size() + kPacketOverhead > Limits::kDatagramBytes)
    return Error{ErrorCode::kInvalidArgument, "message does not fit one datagram"};
  std::array<uint8_t, 24> nonce{};
  rng_.fill(std::as_writable_bytes(std::span(nonce)));
  Buffer out;
  out.reserve(plaintext.size() + kPacketOverhead);
  put_header(out, PacketKind::kSealed, identity_.public_key(), nonce);
  out.resize(plaintext.size() + kPacketOverhead);
  unsigned long long written = 0;
  crypto_aead_xchacha20poly1305_ietf_encrypt(u8(MutableByteView(out)) + kPacketHeader, &written,
                                             u8(plaintext), plaintext.size(), u8(ByteView(out)), 34,
                                             nullptr, nonce.data(), key->data());
  return out;
}

Result<Buffer> PacketSealer::open(const Packet& packet) {
  if (packet.kind != PacketKind::kSealed || packet.body.size() < 16 ||
      packet.sender == identity_.public_key())
    return Error{ErrorCode::kProtocol, "not a sealed packet for us"};
  const PairKey* key = keys_.find(packet.sender);
  std::optional<PairKey> agreed;
  if (key == nullptr) {
    agreed = agree(packet.sender);
    if (!agreed)
      return Error{ErrorCode::kProtocol, "not an Ed25519 public key"};
  }
  std::array<uint8_t, 34> bound{kPacketVersion, static_cast<uint8_t>(packet.kind)};
  std::memcpy(bound.data() + 2, packet.sender.data(), packet.sender.size());
  Buffer plaintext(packet.body.size() - 16);
  unsigned long long written = 0;
  if (crypto_aead_xchacha20poly1305_ietf_decrypt(
          u8(MutableByteView(plaintext)), &written, nullptr, u8(packet.body), packet.body.size(),
          bound.data(), bound.size(), packet.nonce.data(), (agreed ? *agreed : *key).data()) != 0)
    return Error{ErrorCode::kProtocol, "packet fails authentication"};
  if (agreed) // only now: anybody can write any key on a packet
    keys_.put(packet.sender, *agreed);
  return plaintext;
}

Buffer PacketSealer::hello(std::array<uint8_t, 24>& nonce) {
  rng_.fill(std::as_writable_bytes(std::span(nonce)));
  Buffer out;
  put_header(out, PacketKind::kHello, identity_.public_key(), nonce);
  out.resize(kPacketHeader + sizeof(Signature));
  return out;
}

Buffer PacketSealer::hello_statement(const PublicKey& asker, const PublicKey& answerer,
                                     const std::array<uint8_t, 24>& nonce) const {
  Buffer out = statement_buffer("lah-hello-1");
  append(out, as_bytes(asker));
  append(out, as_bytes(answerer));
  append(out, as_bytes(nonce));
  append(out, as_bytes(network_id_));
  return out;
}

Buffer PacketSealer::hello_reply(const Packet& hello) const {
  Buffer out;
  put_header(out, PacketKind::kHelloReply, identity_.public_key(), hello.nonce);
  append(out, as_bytes(identity_.sign(
                  hello_statement(hello.sender, identity_.public_key(), hello.nonce))));
  return out;
}

bool PacketSealer::accept_hello_reply(const Packet& reply,
                                      const std::array<uint8_t, 24>& nonce) const {
  if (reply.kind != PacketKind::kHelloReply || reply.nonce != nonce ||
      reply.body.size() != sizeof(Signature))
    return false;
  Signature signature{};
  std::memcpy(signature.data(), reply.body.data(), signature.size());
  return verify(reply.sender, hello_statement(identity_.public_key(), reply.sender, nonce),
                signature);
}

} // namespace lah::crypto
