#pragma once

#include "base/endpoint.hpp"
#include "base/result.hpp"
#include "dht/id.hpp"

namespace lah::dht {

// Where and who a node is.
struct Contact {
  PublicKey key{};
  PuzzleNonce puzzle{};
  Endpoint endpoint;
  Id id; // node_id(key, puzzle), kept because every comparison needs it

  static Contact make(const PublicKey& key, const PuzzleNonce& puzzle, const Endpoint& endpoint);
  bool operator==(const Contact&) const = default;
};

// 4 or 16 bytes of address, 2 of port.
Buffer encode_endpoint(const Endpoint& endpoint);
Result<Endpoint> decode_endpoint(ByteView data);

inline constexpr size_t kContactBytesMax = 32 + 8 + 18;

// 32 bytes of key, 8 of puzzle nonce, then the endpoint.
Buffer encode_contact(const Contact& contact);
Result<Contact> decode_contact(ByteView data);
// The same into `out`; returns how many bytes.
size_t encode_contact(const Contact& contact, std::span<std::byte, kContactBytesMax> out);

// False for addresses no datagram of ours may be sent to on a stranger's word: port 0, unspecified,
// multicast, broadcast.
bool is_sendable(const Endpoint& endpoint);

} // namespace lah::dht
