#include "sim/hash_cipher.hpp"

#include <algorithm>

namespace lah::sim {
namespace {
constexpr size_t kTagBytes = 16;
}

Buffer HashCipher::packet(crypto::PacketKind kind, const Nonce& nonce) const {
  Buffer out{static_cast<std::byte>(crypto::kPacketVersion), static_cast<std::byte>(kind)};
  append(out, as_bytes(own_));
  append(out, as_bytes(nonce));
  return out;
}

crypto::Digest HashCipher::tag(const crypto::PublicKey& from, const crypto::PublicKey& to,
                               const Nonce& nonce, ByteView text) const {
  return crypto::sha256(
      {as_bytes(network_id_), as_bytes(from), as_bytes(to), as_bytes(nonce), text});
}

Result<Buffer> HashCipher::seal(const crypto::PublicKey& receiver, ByteView plaintext) {
  if (plaintext.size() + crypto::kPacketOverhead > Limits::kDatagramBytes)
    return Error{ErrorCode::kInvalidArgument, "message does not fit one datagram"};
  Nonce nonce{};
  rng_.fill(std::as_writable_bytes(std::span(nonce)));
  Buffer out = packet(crypto::PacketKind::kSealed, nonce);
  append(out, plaintext);
  append(out, as_bytes(tag(own_, receiver, nonce, plaintext)).first(kTagBytes));
  return out;
}

Result<Buffer> HashCipher::open(const crypto::Packet& packet) {
  const ByteView text = packet.body.first(packet.body.size() - kTagBytes);
  const crypto::Digest expected = tag(packet.sender, own_, packet.nonce, text);
  if (!std::ranges::equal(packet.body.last(kTagBytes), as_bytes(expected).first(kTagBytes)))
    return Error{ErrorCode::kProtocol, "packet fails authentication"};
  return Buffer(text.begin(), text.end());
}

Buffer HashCipher::hello(Nonce& nonce) {
  rng_.fill(std::as_writable_bytes(std::span(nonce)));
  Buffer out = packet(crypto::PacketKind::kHello, nonce);
  out.resize(out.size() + sizeof(crypto::Signature));
  return out;
}

Buffer HashCipher::hello_reply(const crypto::Packet& hello) {
  Buffer out = packet(crypto::PacketKind::kHelloReply, hello.nonce);
  append(out, as_bytes(tag(own_, hello.sender, hello.nonce, {})));
  out.resize(crypto::kPacketHeader + sizeof(crypto::Signature));
  return out;
}

bool HashCipher::accept_hello_reply(const crypto::Packet& reply, const Nonce& nonce) {
  const crypto::Digest expected = tag(reply.sender, own_, nonce, {});
  return reply.kind == crypto::PacketKind::kHelloReply && reply.nonce == nonce &&
         std::ranges::equal(reply.body.first(expected.size()), as_bytes(expected));
}

} // namespace lah::sim
