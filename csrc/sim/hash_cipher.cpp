#include "sim/hash_cipher.hpp"

#include <sodium.h>

#include <algorithm>

namespace lah::sim {
HashCipher::HashCipher(const crypto::PublicKey& own, std::string_view network_id, Rng& rng)
    : own_(own), key_{}, rng_(rng) {
  const crypto::Digest digest = crypto::sha256({as_bytes(network_id)});
  std::copy_n(digest.begin(), key_.size(), key_.begin());
}

Buffer HashCipher::packet(crypto::PacketKind kind, const Nonce& nonce) const {
  Buffer out;
  out.reserve(Limits::kDatagramBytes);
  out.push_back(static_cast<std::byte>(crypto::kPacketVersion));
  out.push_back(static_cast<std::byte>(kind));
  append(out, as_bytes(own_));
  append(out, as_bytes(nonce));
  return out;
}

HashCipher::Tag HashCipher::tag(const crypto::PublicKey& from, const crypto::PublicKey& to,
                                const Nonce& nonce, ByteView text) const {
  std::array<std::byte, Limits::kDatagramBytes + 128> whole;
  auto end = whole.begin();
  for (const ByteView part : {as_bytes(from), as_bytes(to), as_bytes(nonce), text})
    end = std::copy(part.begin(), part.end(), end);
  Tag out{};
  crypto_shorthash_siphashx24(out.data(), u8(ByteView(whole)),
                              static_cast<unsigned long long>(end - whole.begin()), key_.data());
  return out;
}

Result<Buffer> HashCipher::seal(const crypto::PublicKey& receiver, ByteView plaintext) {
  if (plaintext.size() + crypto::kPacketOverhead > Limits::kDatagramBytes)
    return Error{ErrorCode::kInvalidArgument, "message does not fit one datagram"};
  Nonce nonce{};
  rng_.fill(std::as_writable_bytes(std::span(nonce)));
  Buffer out = packet(crypto::PacketKind::kSealed, nonce);
  append(out, plaintext);
  append(out, as_bytes(tag(own_, receiver, nonce, plaintext)));
  return out;
}

Result<Buffer> HashCipher::open(const crypto::Packet& packet) {
  const ByteView text = packet.body.first(packet.body.size() - sizeof(Tag));
  if (text.size() > Limits::kDatagramBytes)
    return Error{ErrorCode::kProtocol, "packet is too long"};
  const Tag expected = tag(packet.sender, own_, packet.nonce, text);
  if (!std::ranges::equal(packet.body.last(sizeof(Tag)), as_bytes(expected)))
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
  const Tag expected = tag(reply.sender, own_, nonce, {});
  return reply.kind == crypto::PacketKind::kHelloReply && reply.nonce == nonce &&
         std::ranges::equal(reply.body.first(expected.size()), as_bytes(expected));
}

} // namespace lah::sim
