// Which connections a listener keeps before anybody has proved anything: an address may hold only
// so many, open only so many a second, and have only so many that never said a thing.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <unordered_map>

#include "base/endpoint.hpp"
#include "base/limits.hpp"
#include "base/time.hpp"

namespace lah::net {

struct ConnectionLimits {
  size_t total = Limits::kConnections;
  size_t per_address = Limits::kConnectionsPerAddress;
  size_t silent_per_address = Limits::kSilentPerAddress;
  size_t per_second = Limits::kConnectsPerSecond; // of one address, after a burst of per_address
};

// Knows connections by their descriptors. Loopback addresses only count in the total: whoever is on
// this machine can do worse than connect.
class ConnectionGuard {
public:
  explicit ConnectionGuard(ConnectionLimits limits = {}) : limits_(limits) {}

  // False: one too many, to be closed. It must be told of every acceptance, closure and first
  // message; libzmq's threads may tell of an acceptance last.
  bool accepted(Time now, int fd, const Endpoint& from);
  void closed(int fd);
  void heard(int fd); // a message came, so the peer is authenticated
  // Tells this connection from a later one with the same descriptor.
  std::optional<uint64_t> serial(int fd) const;

  size_t open() const { return kept_; }
  size_t sources() const { return sources_.size(); } // addresses remembered
  uint64_t refused() const { return refused_; }

private:
  using Address = std::array<uint8_t, 16>;
  struct Connection {
    Address address{};
    uint64_t serial = 0;
    bool kept = false;
    bool silent = true;
  };
  struct Source { // of connections, kept until its rate has recovered
    size_t open = 0;
    size_t silent = 0;
    double tokens = 0;
    Time refilled = 0;
  };
  bool permits(Source& source, Time now) const;
  void remove(std::unordered_map<int, Connection>::iterator found);
  void forget_old_sources(Time now);

  const ConnectionLimits limits_;
  std::unordered_map<int, Connection> connections_;
  std::set<int> closed_early_; // before they were accepted
  std::set<int> heard_early_;
  std::map<Address, Source> sources_;
  size_t kept_ = 0;
  uint64_t next_serial_ = 1;
  uint64_t refused_ = 0;
};

} // namespace lah::net
