#include "dht/id.hpp"

#include <bit>

namespace lah::dht {

Id Id::from_bytes(const std::array<uint8_t, 32>& bytes) {
  Id id;
  for (size_t i = 0; i < bytes.size(); ++i)
    id.words[i / 8] = id.words[i / 8] << 8 | bytes[i];
  return id;
}

std::array<uint8_t, 32> Id::bytes() const {
  std::array<uint8_t, 32> out{};
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<uint8_t>(words[i / 8] >> (56 - 8 * (i % 8)));
  return out;
}

size_t common_prefix(const Id& a, const Id& b) {
  for (size_t i = 0; i < a.words.size(); ++i)
    if (a.words[i] != b.words[i])
      return 64 * i + static_cast<size_t>(std::countl_zero(a.words[i] ^ b.words[i]));
  return 256;
}

Id node_id(const PublicKey& key, const PuzzleNonce& puzzle) {
  return Id::from_bytes(crypto::sha256({as_bytes(key), as_bytes(puzzle)}));
}

Id record_key(std::string_view domain, ByteView name) {
  return Id::from_bytes(crypto::sha256({as_bytes(domain), name}));
}

} // namespace lah::dht
