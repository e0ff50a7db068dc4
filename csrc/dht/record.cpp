#include "dht/record.hpp"

#include <utility>

namespace lah::dht {
namespace {

void append_u64(Buffer& out, uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8)
    out.push_back(static_cast<std::byte>(value >> shift & 0xff));
}

// Every field has a fixed length but the network id, whose length comes first, and the payload,
// which is last: no two records share a statement.
Buffer statement(std::string_view network_id, const Record& record) {
  Buffer out;
  append(out, as_bytes("lah-rec-1"));
  append_u64(out, network_id.size());
  append(out, as_bytes(network_id));
  append(out, as_bytes(record.key.bytes()));
  append(out, as_bytes(record.owner));
  append_u64(out, record.seq);
  append_u64(out, record.expiry_ms);
  append(out, record.payload);
  return out;
}

} // namespace

Record sign_record(const crypto::Identity& owner, std::string_view network_id, const Id& key,
                   uint64_t seq, WallMs expiry_ms, Buffer payload) {
  Record record{key, owner.public_key(), seq, expiry_ms, std::move(payload), {}, {}};
  record.signature = owner.sign(statement(network_id, record));
  return record;
}

bool RecordVerifier::verify(const Record& record) {
  const Buffer signed_bytes = statement(network_id_, record);
  const Id digest = Id::from_bytes(crypto::sha256({signed_bytes, as_bytes(record.signature)}));
  VerifiedRecords& verified = shared_ != nullptr ? *shared_ : own_;
  if (verified.contains(digest))
    return true;
  if (!crypto::verify(record.owner, signed_bytes, record.signature))
    return false;
  verified.add(digest);
  return true;
}

void VerifiedRecords::add(const Id& digest) {
  if (recent_.size() >= Limits::kVerifiedRecords / 2)
    older_ = std::exchange(recent_, {});
  recent_.insert(digest);
}

} // namespace lah::dht
