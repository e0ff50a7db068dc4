#include "rpc/replica_calls.hpp"

#include <algorithm>

namespace lah::rpc {

ReplicaCalls::ReplicaCalls(Client& client, Rng& rng, RetryConfig config)
    : client_(client), rng_(rng), config_(config), retry_budget_(config.burst),
      hedge_budget_(config.burst) {}

ReplicaCalls::CallId ReplicaCalls::start(Time now, ReplicatedCall replicated, ReplySink& sink) {
  ++counters_.calls;
  retry_budget_ = std::min(retry_budget_ + config_.retries_per_call, config_.burst);
  hedge_budget_ = std::min(hedge_budget_ + config_.hedges_per_call, config_.burst);
  auto owned = std::make_unique<Replicated>();
  Replicated& call = *owned;
  call.id = next_id_++;
  call.sink = &sink;
  call.call = std::move(replicated.call);
  call.holders = std::move(replicated.holders);
  call.started = now;
  std::stable_partition(call.holders.begin(), call.holders.end(),
                        [&](PeerId peer) { return !client_.down(peer); });
  const CallClass kind = CallClass::of(call.holders.front(), call.call.header);
  if (const auto longest = replicated.adaptive ? latency_.longest(kind) : std::nullopt)
    call.call.deadline = std::min(call.call.deadline, now + config_.adaptive_floor +
                                                          config_.adaptive_factor * *longest);
  if (call.call.header.method == Method::kForward && call.holders.size() > 1) {
    if (const auto p95 = latency_.p95(kind)) {
      call.hedge_at = now + *p95;
      timers_.emplace(call.hedge_at, call.id);
    }
  }
  const CallId id = call.id;
  calls_.emplace(id, std::move(owned));
  launch(now, call);
  return id;
}

void ReplicaCalls::launch(Time now, Replicated& call) {
  auto owned = std::make_unique<Attempt>();
  Attempt& attempt = *owned;
  attempt.owner = this;
  attempt.call = &call;
  attempt.peer = call.holders[call.attempts.size() % call.holders.size()];
  attempt.started = now;
  call.attempts.push_back(std::move(owned));
  // The call may end in here; finished_ then holds it.
  attempt.id = client_.start(now, attempt.peer, OutgoingCall(call.call), attempt);
}

bool ReplicaCalls::Attempt::on_result(const ResultMessage& result) {
  if (call->winner != nullptr && call->winner != this)
    return false;
  call->winner = this;
  return call->sink->on_result(result);
}

void ReplicaCalls::Attempt::on_bytes(uint64_t stream_offset, ByteView bytes) {
  call->sink->on_bytes(stream_offset, bytes); // only of an accepted result
}

void ReplicaCalls::Attempt::on_done(const Outcome& outcome) {
  ended = true;
  owner->ended(*this, outcome);
}

void ReplicaCalls::ended(Attempt& attempt, const Outcome& outcome) {
  Replicated& call = *attempt.call;
  const Time now = attempt.started + outcome.elapsed;
  const ErrorCode code = outcome.error.code;
  if (!calls_.contains(call.id) || (call.winner != nullptr && call.winner != &attempt))
    return; // a loser
  if (code == ErrorCode::kNone || code == ErrorCode::kDeadlineExceeded)
    latency_.sample(CallClass::of(attempt.peer, call.call.header), outcome.elapsed);
  if (code == ErrorCode::kNone) {
    counters_.hedges_won += call.hedged && &attempt != call.attempts.front().get() ? 1 : 0;
    return complete(now, call, outcome);
  }
  call.winner = nullptr;
  if (std::any_of(call.attempts.begin(), call.attempts.end(),
                  [](const auto& other) { return !other->ended; }))
    return; // the other holder may still answer
  const auto wait = retry_wait(call, outcome.error);
  if (!wait || now + *wait >= call.call.deadline)
    return complete(now, call, outcome);
  ++call.retries;
  ++counters_.retries;
  retry_budget_ -= 1;
  call.retry_at = now + *wait;
  timers_.emplace(call.retry_at, call.id);
}

// How long to wait before the next attempt; nothing if there shall be none.
std::optional<Duration> ReplicaCalls::retry_wait(const Replicated& call, const Error& error) {
  const bool elsewhere = call.holders.size() > 1 && call.call.header.method != Method::kBackward;
  const bool refused = error.code == ErrorCode::kOverloaded;
  const bool absent = error.code == ErrorCode::kPeerUnreachable ||
                      error.code == ErrorCode::kShuttingDown ||
                      error.code == ErrorCode::kExpertNotFound;
  if (call.attempts.size() >= config_.attempts || !(refused || (absent && elsewhere)))
    return std::nullopt;
  if (retry_budget_ < 1) {
    ++counters_.over_budget;
    return std::nullopt;
  }
  if (elsewhere)
    return 0;
  const Duration most = std::min(config_.backoff_max, config_.backoff_min << call.attempts.size());
  const auto jitter = static_cast<Duration>(rng_.below(static_cast<uint64_t>(most)));
  return std::max(milliseconds(error.retry_after_ms), config_.backoff_min) + jitter;
}

void ReplicaCalls::complete(Time now, Replicated& call, Outcome outcome) {
  outcome.elapsed = now - call.started;
  outcome.retries = call.retries;
  outcome.hedged = call.hedged;
  const auto found = calls_.find(call.id);
  timers_.erase({call.hedge_at, call.id});
  timers_.erase({call.retry_at, call.id});
  finished_.push_back(std::move(found->second));
  calls_.erase(found);
  call.call.keep.reset(); // attempts that are still open hold their own
  call.sink->on_done(outcome);
}

void ReplicaCalls::cancel(Time now, CallId id) {
  const auto found = calls_.find(id);
  if (found != calls_.end())
    complete(now, *found->second, {Error{ErrorCode::kCancelled, "cancelled by the caller"}});
  cancel_losers(now);
}

// Not at once when they lose: rpc::Client is then in the midst of the winner.
void ReplicaCalls::cancel_losers(Time now) {
  const auto finished = std::exchange(finished_, {});
  for (const auto& call : finished)
    for (const auto& attempt : call->attempts)
      if (!attempt->ended)
        client_.cancel(now, attempt->id);
}

void ReplicaCalls::hedge(Time now, Replicated& call) {
  if (call.winner != nullptr || call.retries > 0 || client_.down(call.holders[1]))
    return;
  if (hedge_budget_ < 1) {
    ++counters_.over_budget;
    return;
  }
  hedge_budget_ -= 1;
  ++counters_.hedges;
  call.hedged = true;
  launch(now, call);
}

void ReplicaCalls::on_timer(Time now) {
  cancel_losers(now);
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Replicated& call = *calls_.at(timers_.begin()->second);
    timers_.erase(timers_.begin());
    if (call.retry_at <= now) {
      call.retry_at = kNever;
      launch(now, call);
    } else {
      call.hedge_at = kNever;
      hedge(now, call);
    }
  }
}

Time ReplicaCalls::next_deadline() const {
  if (!finished_.empty())
    return 0;
  return timers_.empty() ? kNever : timers_.begin()->first;
}

} // namespace lah::rpc
