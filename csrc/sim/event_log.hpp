#pragma once

#include <vector>

#include "base/endpoint.hpp"
#include "base/time.hpp"
#include "crypto/identity.hpp"

namespace lah::sim {

// One digest of everything that happened: each event's 64-bit SipHash, in blocks, chained by
// SHA-256. Two runs of the same digest were the same run.
class EventLog {
public:
  void timer(Time at, size_t host) { add(at, host, Endpoint{}, {}); }
  void delivery(Time at, size_t host, const Endpoint& from, ByteView bytes) {
    add(at, host, from, bytes);
  }
  std::string digest() const;
  uint64_t count() const { return count_; }

private:
  static constexpr size_t kBlock = 512;
  void add(Time at, size_t host, const Endpoint& from, ByteView bytes);
  crypto::Digest chained() const;

  crypto::Digest chain_{};
  std::vector<uint64_t> block_;
  uint64_t count_ = 0;
};

} // namespace lah::sim
