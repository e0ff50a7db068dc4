#include "sim/event_log.hpp"

#include <sodium.h>

namespace lah::sim {
namespace {
uint64_t siphash(ByteView bytes, const std::array<uint64_t, 2>& key) {
  uint64_t out = 0;
  crypto_shorthash(reinterpret_cast<unsigned char*>(&out), u8(bytes), bytes.size(),
                   reinterpret_cast<const unsigned char*>(key.data()));
  return out;
}
} // namespace

void EventLog::add(Time at, size_t host, const Endpoint& from, ByteView bytes) {
  ++count_;
  uint64_t value = siphash(bytes, {static_cast<uint64_t>(at), host});
  if (!bytes.empty())
    value = siphash(as_bytes(from.ip), {value, from.port});
  block_.push_back(value);
  if (block_.size() < kBlock)
    return;
  chain_ = chained();
  block_.clear();
}

crypto::Digest EventLog::chained() const {
  return crypto::sha256({as_bytes(chain_), std::as_bytes(std::span(block_))});
}

std::string EventLog::digest() const {
  return to_hex(as_bytes(chained()));
}

} // namespace lah::sim
