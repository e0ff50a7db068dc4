#pragma once

#include <map>
#include <set>

#include "base/endpoint.hpp"
#include "base/time.hpp"

namespace lah::sim {

// What stands between a node and the internet (the classes of RFC 3489, which RFC 4787 takes apart
// into mapping and filtering): who may use a mapping that the node opened by sending.
enum class NatKind : uint8_t {
  kNone,
  kFullCone,          // anybody
  kAddressRestricted, // addresses it was used to send to
  kPortRestricted,    // addresses and ports it was used to send to
  kSymmetric,         // the same, and every destination has a mapping of its own
};

// One node's NAT. A mapping nothing was sent through for `timeout` is closed.
class Nat {
public:
  Nat(NatKind kind, const Endpoint& outside, Duration timeout)
      : kind_(kind), outside_(outside), timeout_(timeout) {}

  // Where a datagram to `to` seems to come from.
  Endpoint outbound(Time now, const Endpoint& to);
  // Whether a datagram from `from` to this outside port gets in.
  bool admits(Time now, uint16_t port, const Endpoint& from) const;

private:
  struct Mapping {
    uint16_t port;
    Time used_at;
    std::map<Endpoint, Time> sent_to;
  };

  NatKind kind_;
  Endpoint outside_;
  Duration timeout_;
  uint16_t last_port_ = 20'000;
  std::map<Endpoint, Mapping> mappings_; // by destination; under one key unless symmetric
};

} // namespace lah::sim
