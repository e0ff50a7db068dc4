#pragma once

#include <optional>
#include <unordered_set>

#include "base/endpoint.hpp"
#include "base/rng.hpp"
#include "base/time.hpp"

namespace lah::dht {

// Whether strangers can send to us, judged as RFC 5780 does: somebody to whom we sent nothing
// lately must have got through, for only then no NAT or firewall let it in as an answer. A peer is
// asked to have others dial back (OBSERVE); an unasked request of a stranger proves as much.
//
// A node behind a NAT that nobody can reach must not enter tables: every lookup would wait for it.
class Reachability {
public:
  enum class State : uint8_t { kUnknown, kPublic, kUnreachable };

  State state() const { return state_; }
  bool is_unreachable() const { return state_ == State::kUnreachable; }

  // We send to this address: for a while its datagrams prove nothing.
  void sent(Time now, const Endpoint& to);
  // An unasked request got through to us.
  void heard(Time now, const Endpoint& from);
  // Where most peers see us. Peers who see a private address are on our side of every NAT: among
  // them we are public enough. Another public address than before: everything is open again.
  void observed(Time now, const Endpoint& at);

  // --- one probe at a time
  bool due(Time now) const { return now >= next_probe_; }
  uint64_t start(Time now, Rng& rng); // the nonce to be dialled back with
  // The peer asked has passed the nonce on to so many others; none: it could not, or is silent.
  void passed_on(Time now, size_t others);
  void dialled_back(Time now, const Endpoint& from, uint64_t nonce);
  void on_timer(Time now);

  // A NAT forgets a mapping it saw no packet for; most do within five minutes (RFC 4787).
  static constexpr Duration kMemory = 300 * kSecond;
  static constexpr Duration kFirst = 5 * kSecond;
  static constexpr Duration kWait = 5 * kSecond;
  static constexpr Duration kPause = 10 * kSecond;    // between probes while in doubt
  static constexpr Duration kRetry = 60 * kSecond;    // of a node found unreachable
  static constexpr Duration kSettled = 300 * kSecond; // in doubt for long: a small network, say
  static constexpr int kSilentProbes = 4;             // in a row; each has two chances

private:
  struct IpHash {
    size_t operator()(const std::array<uint8_t, 16>& ip) const noexcept {
      return std::hash<Endpoint>()({ip, 0});
    }
  };
  using Addresses = std::unordered_set<std::array<uint8_t, 16>, IpHash>;

  bool is_stranger(const Endpoint& from) const;
  void forget_old(Time now);
  void prove();
  void finish(Time now);

  State state_ = State::kUnknown;
  Addresses recent_; // sent to in this period, and in the last one
  Addresses earlier_;
  bool overflowed_ = false; // there were more: nobody is known to be a stranger
  Time period_began_ = 0;
  std::optional<std::array<uint8_t, 16>> seen_at_;

  std::optional<uint64_t> nonce_; // of the probe under way
  Time probe_ends_ = kNever;
  size_t others_ = 0;
  bool answered_ = false; // by somebody we had sent to: proves nothing either way
  int silent_ = 0;
  int unclear_ = 0;
  Time next_probe_ = kFirst;
};

} // namespace lah::dht
