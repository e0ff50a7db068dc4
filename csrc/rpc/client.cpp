#include "rpc/client.hpp"

namespace lah::rpc {
namespace {

std::string seconds_text(Duration duration) {
  const int64_t tenths = duration / (100 * kMillisecond);
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

} // namespace

Client::Client(Link& link, Rng& rng, ClientConfig config, PeerEvent on_peer)
    : link_(link), rng_(rng), config_(config), on_peer_(std::move(on_peer)) {}

RequestId Client::start(Time now, PeerId peer_id, OutgoingCall out, ReplySink& sink) {
  RequestId id{};
  rng_.fill(std::as_writable_bytes(std::span(id)));
  out.header.id = id;
  out.header.total_bytes = stream_bytes(out.header.tensors);
  if (out.header.total_bytes > Limits::kCallBytes) {
    sink.on_done({Error{ErrorCode::kInvalidArgument,
                        "a call may carry " + std::to_string(Limits::kCallBytes) + " bytes, got " +
                            std::to_string(out.header.total_bytes)}});
    return id;
  }
  Peer& peer = peers_[peer_id];
  const Time deadline = out.deadline;
  OpenCall call;
  call.peer = peer_id;
  call.sink = &sink;
  call.sending = StreamCursor(out.header.tensors);
  call.out = std::move(out);
  call.timer = timers_.emplace(deadline, id);
  calls_.emplace(id, std::move(call));
  if (peer.waiting_since == kNever) {
    peer.waiting_since = now;
    peer.next_check = now + config_.ping_interval;
  }
  peer.calls.insert(id);
  peer.sending.push_back(id);
  pump(now, peer_id, peer);
  return id;
}

void Client::cancel(Time now, const RequestId& id) {
  const auto found = calls_.find(id);
  if (found == calls_.end())
    return;
  const PeerId peer_id = found->second.peer;
  if (found->second.called)
    send_control(peer_id, peers_[peer_id], Cancel{id});
  finish(id, {Error{ErrorCode::kCancelled, "cancelled by the caller"}});
  pump(now, peer_id, peers_[peer_id]);
}

void Client::ping(Time now, PeerId peer_id, Time deadline, PingDone done) {
  RequestId id{};
  rng_.fill(std::as_writable_bytes(std::span(id)));
  pings_.emplace(id, OpenPing{peer_id, now, deadline, std::move(done)});
  Peer& peer = peers_[peer_id];
  peer.next_check = std::min(peer.next_check, now + config_.idle);
  send_control(peer_id, peer, Ping{id});
}

void Client::fail_all(const Error& error) {
  while (!calls_.empty())
    finish(calls_.begin()->first, {error});
  for (auto& [id, ping] : pings_)
    ping.done(error, 0);
  pings_.clear();
}

// Chunks of several calls take turns, so a small call never waits for the whole of a large one.
void Client::pump(Time now, PeerId id, Peer& peer) {
  while (!peer.control.empty()) {
    if (link_.send(id, peer.control.front(), {}) != Sent::kAccepted)
      return;
    peer.control.pop_front();
  }
  size_t stalled = 0;
  while (stalled < peer.sending.size()) {
    const RequestId next = peer.sending.front();
    peer.sending.pop_front();
    const auto found = calls_.find(next);
    if (found == calls_.end())
      continue;
    OpenCall& call = found->second;
    if (call.called && call.sending.offset() + call.sending.next().size > call.credit) {
      peer.sending.push_back(next);
      ++stalled;
      continue;
    }
    if (send_next(now, call) != Sent::kAccepted) {
      peer.sending.push_front(next);
      return;
    }
    stalled = 0;
    if (!call.sending.done())
      peer.sending.push_back(next);
  }
}

Sent Client::send_next(Time now, OpenCall& call) {
  Chunk chunk;
  Buffer gathered;
  const Piece piece = call.sending.done() ? Piece{} : call.sending.next();
  if (piece.size > 0 && call.sending.whole()) {
    gathered.resize(piece.size);
    size_t at = 0;
    for (ByteView tensor : call.out.tensors) {
      if (!tensor.empty())
        std::memcpy(gathered.data() + at, tensor.data(), tensor.size());
      at += align_up(tensor.size());
    }
    chunk.bytes = gathered;
  } else if (piece.size > 0) {
    chunk = {call.out.tensors[piece.tensor].subspan(piece.begin, piece.size), call.out.keep};
  }
  Buffer header;
  if (call.called) {
    header = encode(Data{call.out.header.id, piece.offset});
  } else {
    const Duration left = std::max<Duration>(call.out.deadline - now, 0);
    call.out.header.deadline_ms =
        std::min<uint64_t>(static_cast<uint64_t>(left / kMillisecond), Limits::kDeadlineMs);
    header = encode(call.out.header);
  }
  const Sent sent = link_.send(call.peer, header, chunk);
  if (sent == Sent::kAccepted) {
    call.called = true;
    if (piece.size > 0)
      call.sending.advance(piece.size);
  }
  return sent;
}

bool Client::send_control(PeerId id, Peer& peer, const Message& message) {
  Buffer header = encode(message);
  if (peer.control.empty() && link_.send(id, header, {}) == Sent::kAccepted)
    return true;
  if (peer.control.size() < Limits::kPeerCalls)
    peer.control.push_back(std::move(header));
  return false;
}

void Client::send_ping(Time now, PeerId id, Peer& peer) {
  if (!peer.control.empty())
    return; // an unsent ping already waits for the connection
  ping(now, id, now + config_.silence, [](const Error&, Duration) {});
}

void Client::finish(const RequestId& id, const Outcome& outcome) {
  const auto found = calls_.find(id);
  if (found == calls_.end())
    return;
  ReplySink* sink = found->second.sink;
  Peer& peer = peers_[found->second.peer];
  peer.calls.erase(id);
  std::erase(peer.sending, id);
  timers_.erase(found->second.timer);
  calls_.erase(found);
  sink->on_done(outcome);
}

void Client::fail_peer(Peer& peer, const Error& error) {
  const std::set<RequestId> calls = peer.calls; // finish() edits the original
  for (const RequestId& id : calls)
    finish(id, {error});
}

// Down, and probed from now on until it answers again.
void Client::give_up(Time now, PeerId id, Peer& peer, const Error& error) {
  fail_peer(peer, error);
  peer.waiting_since = kNever;
  peer.probe_until = now + config_.probe_for;
  peer.next_check = now + config_.probe_interval;
  if (!peer.down) {
    peer.down = true;
    on_peer_(id, false);
  }
}

void Client::heard(Time now, PeerId id, Peer& peer) {
  peer.heard = now;
  if (peer.down) {
    peer.down = false;
    on_peer_(id, true);
  }
  peer.waiting_since = peer.calls.empty() ? kNever : now;
  peer.next_check = now + (peer.calls.empty() ? config_.idle : config_.ping_interval);
}

void Client::on_frames(Time now, PeerId peer_id, ByteView header, ByteView chunk) {
  const auto message = decode(header);
  if (!message)
    return;
  std::visit(
      [&](const auto& known) {
        if constexpr (requires { handle(now, peer_id, known, chunk); })
          handle(now, peer_id, known, chunk);
      },
      *message);
  if (!std::holds_alternative<GoAway>(*message))
    heard(now, peer_id, peers_[peer_id]); // afterwards: nothing may be owed any more
}

void Client::handle(Time now, PeerId peer_id, const ResultMessage& message, ByteView chunk) {
  const auto found = calls_.find(message.id);
  if (found == calls_.end() || found->second.peer != peer_id || found->second.result)
    return; // late: the caller has moved on
  OpenCall& call = found->second;
  if (!call.sink->on_result(message)) {
    finish(message.id, {Error{ErrorCode::kSchemaMismatch,
                              "the server's result has other tensors than the caller expects"}});
    return;
  }
  call.result = message;
  call.receiving = StreamCursor(message.tensors);
  take_bytes(message.id, call, 0, chunk);
  pump(now, peer_id, peers_[peer_id]);
}

void Client::handle(Time now, PeerId peer_id, const Data& message, ByteView chunk) {
  const auto found = calls_.find(message.id);
  if (found == calls_.end() || found->second.peer != peer_id || !found->second.result)
    return;
  take_bytes(message.id, found->second, message.offset, chunk);
  pump(now, peer_id, peers_[peer_id]);
}

void Client::take_bytes(const RequestId& id, OpenCall& call, uint64_t offset, ByteView chunk) {
  if (!call.receiving.done()) {
    const Piece expected = call.receiving.next();
    if (offset != expected.offset || chunk.size() != expected.size) {
      finish(id, {Error{ErrorCode::kProtocol, "the server's result stream has a gap"}});
      return;
    }
    call.sink->on_bytes(offset, chunk);
    call.receiving.advance(expected.size);
  }
  if (call.receiving.done()) {
    const ResultMessage& result = *call.result;
    finish(id, {Error{}, result.queue_us, result.service_us, result.batch_rows});
    return;
  }
  if (const uint64_t limit = call.window.grant(call.receiving.offset()); limit != 0)
    send_control(call.peer, peers_[call.peer], Credit{id, limit});
}

void Client::handle(Time now, PeerId peer_id, const Credit& message, ByteView) {
  const auto found = calls_.find(message.id);
  if (found == calls_.end() || found->second.peer != peer_id)
    return;
  found->second.credit = std::max(found->second.credit, message.limit);
  pump(now, peer_id, peers_[peer_id]);
}

void Client::handle(Time, PeerId peer_id, const ErrorMessage& message, ByteView chunk) {
  const auto found = calls_.find(message.id);
  if (found == calls_.end() || found->second.peer != peer_id)
    return;
  Error error{message.code, message.message};
  if (error.code == ErrorCode::kNone)
    error.code = ErrorCode::kProtocol;
  error.detail = as_text(chunk.first(std::min(chunk.size(), Limits::kErrorTextBytes)));
  error.retry_after_ms = static_cast<uint32_t>(message.retry_after_ms);
  finish(message.id, {error});
}

void Client::handle(Time now, PeerId peer_id, const Pong& message, ByteView) {
  Peer& peer = peers_[peer_id];
  const bool restarted = peer.boot_id != 0 && peer.boot_id != message.boot_id;
  peer.boot_id = message.boot_id;
  if (const auto found = pings_.find(message.id); found != pings_.end()) {
    const OpenPing ping = std::move(found->second);
    pings_.erase(found);
    ping.done(Error{}, now - ping.sent);
  }
  if (restarted) // what was sent to the old incarnation will never be answered
    fail_peer(peer, {ErrorCode::kPeerUnreachable, "the server restarted during the call"});
}

void Client::handle(Time now, PeerId peer_id, const GoAway&, ByteView) {
  Peer& peer = peers_[peer_id];
  give_up(now, peer_id, peer, {ErrorCode::kShuttingDown, "the server is shutting down"});
  peer.probe_until = peer.next_check = now + config_.farewell; // it is not silent: no probes
}

void Client::forget(PeerId id) {
  if (const auto found = peers_.find(id); found != peers_.end()) {
    fail_peer(found->second, {ErrorCode::kPeerUnreachable, "the connection was closed"});
    peers_.erase(found);
  }
}

void Client::on_writable(Time now, PeerId peer) {
  if (const auto found = peers_.find(peer); found != peers_.end())
    pump(now, peer, found->second);
}

void Client::on_timer(Time now) {
  while (!timers_.empty() && timers_.begin()->first <= now) {
    const RequestId id = timers_.begin()->second;
    OpenCall& call = calls_.at(id);
    const char* phase = !call.called  ? "before the call could be sent"
                        : call.result ? "while the result arrived"
                                      : "while waiting for the result";
    if (call.called)
      send_control(call.peer, peers_[call.peer], Cancel{id});
    finish(id, {Error{ErrorCode::kDeadlineExceeded, std::string("the deadline passed ") + phase}});
  }
  for (auto it = pings_.begin(); it != pings_.end();) {
    if (it->second.deadline > now) {
      ++it;
      continue;
    }
    const PingDone done = std::move(it->second.done);
    it = pings_.erase(it);
    done({ErrorCode::kDeadlineExceeded, "no answer to a ping"}, 0);
  }
  std::vector<PeerId> due; // checking one may remove it
  for (const auto& [id, peer] : peers_)
    if (peer.next_check <= now)
      due.push_back(id);
  for (PeerId id : due)
    check_peer(now, id, peers_[id]);
}

// A caller that gives up does not end the watch: a peer that owes an answer is pinged until it is
// heard or down.
void Client::check_peer(Time now, PeerId id, Peer& peer) {
  const bool owing = peer.waiting_since != kNever;
  if (owing && now - peer.waiting_since >= config_.silence) {
    give_up(now, id, peer,
            {ErrorCode::kPeerUnreachable,
             peer.heard == 0 ? "no connection within " + seconds_text(config_.silence)
                             : "silent for " + seconds_text(now - peer.heard)});
  } else if (owing) {
    peer.next_check = std::min(now + config_.ping_interval, peer.waiting_since + config_.silence);
  } else if (peer.down && now < peer.probe_until) {
    peer.next_check = now + config_.probe_interval;
  } else {
    return release(id);
  }
  send_ping(now, id, peer);
}

// A peer that was down gets another chance: whoever still knows of it may call it.
void Client::release(PeerId id) {
  const bool was_down = peers_.at(id).down;
  peers_.erase(id);
  link_.release(id);
  if (was_down)
    on_peer_(id, true);
}

Time Client::next_deadline() const {
  Time next = timers_.empty() ? kNever : timers_.begin()->first;
  for (const auto& [id, ping] : pings_)
    next = std::min(next, ping.deadline);
  for (const auto& [id, peer] : peers_)
    next = std::min(next, peer.next_check);
  return next;
}

} // namespace lah::rpc
