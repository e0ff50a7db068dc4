#pragma once

#include <map>

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
    uint16_t port = 0;
    Time used_at = 0;
    std::map<Endpoint, Time> sent_to = {};
  };

  // Of the mapping that a destination uses: all use one, unless the NAT is symmetric.
  Endpoint key(const Endpoint& to) const { return kind_ == NatKind::kSymmetric ? to : Endpoint{}; }
  bool is_fresh(Time now, Time used) const { return now - used <= timeout_; }
  void sweep(Time now);

  NatKind kind_;
  Endpoint outside_;
  Duration timeout_;
  uint16_t last_port_ = 20'000;
  std::map<Endpoint, Mapping> mappings_;
  Time swept_at_ = 0;
};

} // namespace lah::sim
