// Names of the 256-bit key space: nodes and records live in the same one.
#pragma once

#include <compare>

#include "crypto/identity.hpp"

namespace lah::dht {

using crypto::PublicKey;

// Most significant word first, so that comparing two ids compares two big-endian numbers.
struct Id {
  std::array<uint64_t, 4> words{};

  static Id from_bytes(const std::array<uint8_t, 32>& bytes);
  std::array<uint8_t, 32> bytes() const;

  auto operator<=>(const Id&) const = default;
};

struct IdHash {
  size_t operator()(const Id& id) const noexcept { return static_cast<size_t>(id.words[3]); }
};

// The XOR metric of Kademlia (Maymounkov and Mazieres, 2002).
inline Id distance(const Id& a, const Id& b) {
  return {{a.words[0] ^ b.words[0], a.words[1] ^ b.words[1], a.words[2] ^ b.words[2],
           a.words[3] ^ b.words[3]}};
}

// Number of leading bits two ids share, 0..256.
size_t common_prefix(const Id& a, const Id& b);

// Reserved for a proof of work bound to the key; all zeros while no network asks for one.
using PuzzleNonce = std::array<uint8_t, 8>;

// An id is bound to its owner's key: nobody chooses where in the key space to sit without work.
Id node_id(const PublicKey& key, const PuzzleNonce& puzzle);

// Where a record called `name` lives. The domain keeps kinds of names apart.
Id record_key(std::string_view domain, ByteView name);

} // namespace lah::dht
