#include "dht/reachability.hpp"

#include "base/limits.hpp"

namespace lah::dht {
namespace {
constexpr int kUnclearProbes = 12; // after so many in a row they become rare
} // namespace

// --- whom we sent to -----------------------------------------------------------------------------

void Reachability::forget_old(Time now) {
  if (now - period_began_ < kMemory)
    return;
  earlier_ = now - period_began_ < 2 * kMemory ? std::move(recent_) : Addresses{};
  recent_.clear();
  overflowed_ = earlier_.size() >= Limits::kContactedAddresses;
  period_began_ = now;
}

void Reachability::sent(Time now, const Endpoint& to) {
  if (state_ == State::kPublic)
    return;
  forget_old(now);
  if (recent_.size() < Limits::kContactedAddresses)
    recent_.insert(to.ip);
  else
    overflowed_ = true;
}

bool Reachability::is_stranger(const Endpoint& from) const {
  return !overflowed_ && !from.is_private() && !recent_.contains(from.ip) &&
         !earlier_.contains(from.ip);
}

void Reachability::heard(Time now, const Endpoint& from) {
  if (state_ == State::kPublic)
    return;
  forget_old(now);
  if (is_stranger(from))
    prove();
}

void Reachability::observed(Time now, const Endpoint& at) {
  if (seen_at_ == at.ip)
    return;
  const bool moved = seen_at_.has_value();
  seen_at_ = at.ip;
  if (at.is_private()) {
    prove();
  } else if (moved) {
    state_ = State::kUnknown;
    silent_ = unclear_ = 0;
    next_probe_ = now + kFirst;
    recent_.clear();
    earlier_.clear();
    period_began_ = now;
    overflowed_ = true; // whom a public node sends to is not written down
  }
}

// --- probes --------------------------------------------------------------------------------------

void Reachability::prove() {
  state_ = State::kPublic;
  silent_ = unclear_ = 0;
  nonce_.reset();
  probe_ends_ = next_probe_ = kNever;
}

uint64_t Reachability::start(Time now, Rng& rng) {
  nonce_ = rng.u64();
  others_ = 0;
  answered_ = false;
  probe_ends_ = now + kWait;
  next_probe_ = kNever;
  return *nonce_;
}

void Reachability::passed_on(Time now, size_t others) {
  others_ = others;
  if (others == 0 && nonce_)
    finish(now);
}

void Reachability::dialled_back(Time now, const Endpoint& from, uint64_t nonce) {
  forget_old(now);
  if (nonce_ != nonce)
    return;
  if (is_stranger(from))
    prove();
  else
    answered_ = true;
}

void Reachability::on_timer(Time now) {
  if (now >= probe_ends_)
    finish(now);
}

void Reachability::finish(Time now) {
  nonce_.reset();
  probe_ends_ = kNever;
  if (answered_ || others_ == 0)
    ++unclear_;
  else if (++silent_ >= kSilentProbes)
    state_ = State::kUnreachable;
  next_probe_ = now + (is_unreachable() ? kRetry : unclear_ >= kUnclearProbes ? kSettled : kPause);
}

} // namespace lah::dht
