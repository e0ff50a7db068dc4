// Calls of an expert that several servers may hold: sans-IO, above rpc::Client. A forward call that
// fails is tried at another holder, one that is slow is hedged by a second one; whichever result
// begins to arrive first is the answer. A backward call changes its expert, so it is repeated only
// where the server said that it had not kept it (Overloaded). Retries and hedges are paid from
// budgets, so that a struggling swarm is not struck by more calls ("The Tail at Scale", Dean and
// Barroso 2013).
#pragma once

#include "rpc/call_latency.hpp"
#include "rpc/client.hpp"

namespace lah::rpc {

struct ReplicatedCall {
  OutgoingCall call;
  std::vector<PeerId> holders; // in order of preference; not empty
  // End sooner than the deadline, when such calls have never taken nearly as long.
  bool adaptive = false;
};

struct RetryConfig {
  unsigned attempts = 3; // of one call, hedges included
  double retries_per_call = 0.1;
  double hedges_per_call = 0.05;
  double burst = 10; // retries, and hedges, that may come at once
  Duration backoff_min = 50 * kMillisecond;
  Duration backoff_max = 2 * kSecond;
  Duration adaptive_floor = 5 * kSecond; // no adaptive deadline is shorter
  int adaptive_factor = 4;               // times the longest of the recent calls, above the floor
};

class ReplicaCalls {
public:
  using CallId = uint64_t;
  struct Counters {
    uint64_t calls = 0;
    uint64_t retries = 0;
    uint64_t hedges = 0;
    uint64_t hedges_won = 0;
    uint64_t over_budget = 0;
  };

  ReplicaCalls(Client& client, Rng& rng, RetryConfig config);

  // Ends once, through its sink, as rpc::Client's calls do.
  CallId start(Time now, ReplicatedCall call, ReplySink& sink);
  void cancel(Time now, CallId id);
  void on_timer(Time now);
  Time next_deadline() const;
  const Counters& counters() const { return counters_; }

private:
  struct Replicated;
  struct Attempt final : ReplySink {
    ReplicaCalls* owner = nullptr;
    Replicated* call = nullptr;
    PeerId peer = 0;
    RequestId id{};
    Time started = 0;
    bool ended = false;

    bool on_result(const ResultMessage& result) override;
    void on_bytes(uint64_t stream_offset, ByteView bytes) override;
    void on_done(const Outcome& outcome) override;
  };
  struct Replicated {
    CallId id = 0;
    ReplySink* sink = nullptr;
    OutgoingCall call;
    std::vector<PeerId> holders;
    std::vector<std::unique_ptr<Attempt>> attempts;
    const Attempt* winner = nullptr; // its result has begun to arrive
    Time started = 0;
    Time hedge_at = kNever;
    Time retry_at = kNever;
    uint64_t retries = 0;
    bool hedged = false;
  };

  void launch(Time now, Replicated& call);
  void hedge(Time now, Replicated& call);
  std::optional<Duration> retry_wait(const Replicated& call, const Error& error);
  void ended(Attempt& attempt, const Outcome& outcome);
  void complete(Time now, Replicated& call, Outcome outcome);
  void cancel_losers(Time now);

  Client& client_;
  Rng& rng_;
  RetryConfig config_;
  CallLatency latency_;
  Counters counters_;
  double retry_budget_;
  double hedge_budget_;
  CallId next_id_ = 1;
  std::unordered_map<CallId, std::unique_ptr<Replicated>> calls_;
  std::set<std::pair<Time, CallId>> timers_;          // hedges and retries
  std::vector<std::unique_ptr<Replicated>> finished_; // until no frame can reach their attempts
};

} // namespace lah::rpc
