// The serving side of expert calls: sans-IO. Assembles requests out of frames, hands complete ones
// to a CallHandler, streams results back. Memory is taken only after a request passed every check
// its header allows.
#pragma once

#include <deque>
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "base/shared_bytes.hpp"
#include "rpc/backward_memory.hpp"
#include "rpc/link.hpp"
#include "rpc/stream.hpp"

namespace lah::rpc {

struct CallKey {
  PeerId peer = 0;
  RequestId id{};
  auto operator<=>(const CallKey&) const = default;
};

// A complete request. `bytes` is its stream (see stream.hpp), kept alive by one of the two owners.
struct IncomingCall {
  CallKey key;
  Call header;
  uint32_t pool = 0; // what CallHandler::admit answered
  Time arrived = 0;
  Time deadline = kNever;
  ByteView bytes;
  SharedBytes buffer;
  std::unique_ptr<ReceivedChunk::Owner> frame;
};

class CallHandler {
public:
  virtual ~CallHandler() = default;
  // Checks uid, schema and load, before any byte of the request is kept.
  virtual Result<uint32_t> admit(const Call& call) = 0;
  virtual void submit(IncomingCall call) = 0;
  virtual void cancel(const CallKey& key) = 0;
  // The answer to Method::kInfo: a JSON document.
  virtual Result<std::string> describe(const std::string& uid) = 0;
};

class Server {
public:
  Server(Link& link, CallHandler& handler, ByteAllocator& allocator, uint64_t boot_id);

  void on_frames(Time now, PeerId peer, ByteView header, ReceivedChunk chunk);
  void on_writable(PeerId peer);
  void on_timer(Time now);
  Time next_deadline() const;

  void reply(Time now, const CallKey& key, OutgoingResult result);
  void fail(const CallKey& key, const Error& error);
  void forget(PeerId peer); // nothing of this peer is kept
  void say_goodbye();       // tells every peer that no more answers will come

  struct Counters {
    uint64_t calls = 0;
    uint64_t refused = 0;
    uint64_t expired = 0;
    uint64_t bad_frames = 0;
    uint64_t repeated = 0; // backward calls that came again and were not applied again
  };
  const Counters& counters() const { return counters_; }

private:
  struct Incoming {
    Call header;
    uint32_t pool = 0;
    Time arrived = 0;
    Time deadline = 0;
    SharedBytes buffer;
    PieceSet receiving;
    CreditWindow window;
  };
  struct Outgoing {
    Buffer header; // RESULT or ERROR; empty once sent
    RequestId id{};
    SharedBytes bytes;
    std::vector<ByteView> tensors; // see OutgoingResult
    std::shared_ptr<const void> keep;
    Buffer text; // of an ERROR
    StreamCursor sending;
    uint64_t credit = Limits::kCreditBytes;
    bool known = false; // the caller has begun to receive it: the rest may take stripes
  };
  struct Peer {
    std::deque<Outgoing> sending;
    size_t held_bytes = 0;
    std::unordered_set<RequestId, RequestIdHash> open; // admitted and not yet answered
    Time heard = 0;
    PeerId first = 0;            // of a stripe: the connection it belongs to
    std::vector<PeerId> stripes; // of a first connection
    size_t turn = 0;             // which of them is next
  };

  void handle(Time now, PeerId peer, const Call& message, ReceivedChunk& chunk);
  void handle(Time now, PeerId peer, const Data& message, ReceivedChunk& chunk);
  void handle(Time now, PeerId peer, const Credit& message, ReceivedChunk& chunk);
  void handle(Time now, PeerId peer, const Cancel& message, ReceivedChunk& chunk);
  void handle(Time now, PeerId peer, const Ping& message, ReceivedChunk& chunk);
  void handle(Time now, PeerId peer, const Join& message, ReceivedChunk& chunk);

  PeerId first_of(PeerId connection) const;
  std::optional<Error> refuse(const Peer& peer, const Call& call) const;
  bool is_new(PeerId peer_id, Peer& peer, const Call& call);
  void receive(Time now, PeerId peer_id, Peer& peer, Incoming incoming, ReceivedChunk& chunk);
  void answer_repeated(PeerId peer_id, Peer& peer, BackwardMemory::Entry& known,
                       std::string_view caller);
  void hold(const CallKey& key, Peer& peer, uint64_t bytes);
  void let_go(const CallKey& key);
  Incoming take_incoming(std::map<CallKey, Incoming>::iterator it);
  void forget_idle(Time now);
  void answer_info(Time now, const CallKey& key, const Call& call);
  void submit(const CallKey& key, Incoming&& incoming, ReceivedChunk* whole);
  void drop_incoming(const CallKey& key);
  void send_error(PeerId peer, const RequestId& id, const Error& error);
  void send_result(PeerId peer, const OutgoingResult& result);
  void send(PeerId peer, Outgoing outgoing);
  void pump(PeerId id, Peer& peer);
  Sent send_next(PeerId id, Peer& peer, Outgoing& outgoing);
  Sent send_striped(PeerId id, Peer& peer, ByteView header, const Chunk& chunk);

  Link& link_;
  CallHandler& handler_;
  ByteAllocator& allocator_;
  uint64_t boot_id_;
  std::map<CallKey, Incoming> incoming_;
  std::unordered_map<RequestId, PeerId, RequestIdHash> incoming_peers_;
  BackwardMemory backward_;
  Time next_sweep_ = 0; // of idle peers
  std::unordered_map<PeerId, Peer> peers_;
  std::map<CallKey, uint64_t> held_; // bytes of calls from their admission to their answer
  size_t held_bytes_ = 0;
  Counters counters_;
};

} // namespace lah::rpc
