#pragma once

#include "dht/message.hpp"

namespace lah::dht {

constexpr size_t digest_sector(const PublicKey& owner) {
  static_assert(Limits::kDigestSectors == 8);
  return owner[0] >> 5;
}

// Of owner and payload: the same for every refresh of a record.
inline uint64_t content_hash(const Record& record) {
  const crypto::Digest hash = crypto::sha256({as_bytes(record.owner), record.payload});
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i)
    value = value << 8 | hash[i];
  return value;
}

} // namespace lah::dht
