// The calling side of expert calls: sans-IO. Events go in with the time they happened, frames go
// out through Link, results through the ReplySink of each call. Every call ends exactly once: with
// a result, an error, or its deadline.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>
#include <unordered_map>

#include "base/rng.hpp"
#include "base/rtt.hpp"
#include "rpc/link.hpp"
#include "rpc/stream.hpp"

namespace lah::rpc {

struct Outcome {
  Error error; // kNone: the whole result arrived
  uint64_t queue_us = 0;
  uint64_t service_us = 0;
  uint64_t batch_rows = 0;
  uint64_t wait_us = 0; // what the server said that a further request would wait
  uint64_t resends = 0; // after lost connections
  Duration elapsed = 0; // from start to end, as the caller saw it
  PeerId peer = 0;      // who answered, or failed last
  uint64_t retries = 0; // attempts after the first, at this holder or another
  bool hedged = false;  // a second holder was asked while the first one was slow
};

class ReplySink {
public:
  virtual ~ReplySink() = default;
  // Called again, from the start, if the result was lost on its way with the connection.
  // False if the result's tensors are not what the caller expects; the call then fails with
  // kSchemaMismatch.
  virtual bool on_result(const ResultMessage& result) = 0;
  virtual void on_bytes(uint64_t stream_offset, ByteView bytes) = 0;
  virtual void on_done(const Outcome& outcome) = 0; // the sink is not touched afterwards
};

struct OutgoingCall {
  Call header; // id, total_bytes and deadline_ms are filled in by the client
  std::vector<ByteView> tensors;
  std::shared_ptr<const void> keep; // holds the tensors' memory; needed above one chunk
  Time deadline = kNever;
};

struct ClientConfig {
  Duration ping_interval = 250 * kMillisecond; // of a peer that owes an answer and is silent
  Duration suspicion = 1 * kSecond; // then the transport is asked whether anything listens there
  Duration silence = 3 * kSecond;   // then it is down and its calls fail
  Duration probe_interval = 1 * kSecond; // of a peer that is down
  Duration probe_for = 120 * kSecond;    // then it is forgotten: its records have expired
  Duration farewell = 2 * kSecond;       // how long a peer that said goodbye counts as down
  Duration idle = 300 * kSecond;         // without calls: its connection is closed
};

class Client {
public:
  using PingDone = std::function<void(const Error&, Duration round_trip)>;
  using PeerEvent = std::function<void(PeerId, bool up)>;

  Client(Link& link, Rng& rng, ClientConfig config, PeerEvent on_peer);

  // Starts a call, or ends it at once through its sink.
  RequestId start(Time now, PeerId peer, OutgoingCall call, ReplySink& sink);
  void cancel(Time now, const RequestId& id);
  void ping(Time now, PeerId peer, Time deadline, PingDone done);
  void fail_all(Time now, const Error& error);
  bool down(PeerId peer) const; // silent, and not heard since

  void on_frames(Time now, PeerId peer, ByteView header, ByteView chunk);
  void on_writable(Time now, PeerId peer);
  void on_refused(Time now, PeerId peer);       // nothing listens at its address (Link::probe)
  void on_not_permitted(Time now, PeerId peer); // its server does not let this caller in
  void on_timer(Time now);
  Time next_deadline() const;

private:
  struct OpenCall {
    PeerId peer = 0;
    OutgoingCall out;
    ReplySink* sink = nullptr;
    StreamCursor sending;
    uint64_t credit = Limits::kCreditBytes;
    uint64_t arrived = 0; // bytes of it that the server has
    bool called = false;  // the CALL header went out
    bool known = false;   // and the server has begun to receive it: the rest may take stripes
    Time started = 0;
    Time sent = 0; // when the CALL header went out last
    std::optional<ResultMessage> result;
    PieceSet receiving;
    CreditWindow window;
    std::multimap<Time, RequestId>::iterator timer;
  };
  struct Stripe {
    PeerId connection = 0;
    RequestId asked{};      // the JOIN that was sent last
    Time asked_at = kNever; // kNever: the connection is not there yet
    bool waiting = true;    // for its answer
    uint64_t number = 0;    // as the server numbers it; 0: not joined yet
  };
  struct OpenPing {
    PeerId peer;
    Time sent;
    Time deadline;
    PingDone done;
  };
  struct Peer {
    Time heard = 0;
    Time waiting_since = kNever; // an answer is owed and nothing was heard since
    Time next_check = kNever;
    Time probe_until = 0;
    bool down = false;
    uint64_t boot_id = 0;
    uint64_t connection = 0; // as the server numbers them; 0: not heard of yet
    RttEstimator rtt;
    std::set<RequestId> calls;
    std::deque<RequestId> sending;
    std::deque<Buffer> control; // small messages the link refused so far
    std::vector<Stripe> stripes;
    bool unstriped = false; // it does not answer JOIN
    size_t turn = 0;        // which of them is next
    uint64_t sent = 0;      // bytes that arrived there since `counted`
    uint64_t received = 0;  // and here
    Time counted = 0;
  };

  void pump(Time now, PeerId id, Peer& peer);
  Sent send_next(Time now, Peer& peer, OpenCall& call);
  bool send_control(PeerId id, Peer& peer, const Message& message);
  void send_ping(Time now, PeerId id, Peer& peer);
  void finish(Time now, const RequestId& id, Outcome outcome);
  void fail_peer(Time now, Peer& peer, const Error& error);
  void give_up(Time now, PeerId id, Peer& peer, const Error& error);
  void heard(Time now, PeerId id, Peer& peer);
  void check_peer(Time now, PeerId id, Peer& peer);
  Duration silence_of(const Peer& peer) const;
  void release(PeerId id);

  void handle(Time now, PeerId peer, const ResultMessage& message, ByteView chunk);
  void handle(Time now, PeerId peer, const Data& message, ByteView chunk);
  void handle(Time now, PeerId peer, const Credit& message, ByteView chunk);
  void handle(Time now, PeerId peer, const ErrorMessage& message, ByteView chunk);
  void handle(Time now, PeerId peer, const Pong& message, ByteView chunk);
  void handle(Time now, PeerId peer, const GoAway& message, ByteView chunk);
  bool striped(const Peer& peer, const OpenCall& call) const;
  Sent send_striped(Peer& peer, ByteView header, const Chunk& chunk);
  void add_stripes(Time now, PeerId id, Peer& peer);
  void watch_stripes(Time now, PeerId id, Peer& peer);
  void join(Time now, Peer& peer, Stripe& stripe);
  bool joined(Peer& peer, PeerId connection, const Pong& message);
  void drop_stripes(Peer& peer);
  void reconnect(Time now, PeerId id, Peer& peer);

  void resend_lost(Time now, PeerId id, Peer& peer, Time before, uint64_t former_boot_id);
  void take_bytes(Time now, const RequestId& id, OpenCall& call, uint64_t offset, ByteView chunk);

  Link& link_;
  Rng& rng_;
  ClientConfig config_;
  PeerEvent on_peer_;
  std::unordered_map<RequestId, OpenCall, RequestIdHash> calls_;
  std::multimap<Time, RequestId> timers_;
  std::unordered_map<RequestId, OpenPing, RequestIdHash> pings_;
  std::unordered_map<PeerId, Peer> peers_;
};

} // namespace lah::rpc
