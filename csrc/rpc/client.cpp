#include "rpc/client.hpp"

namespace lah::rpc {
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
  call.started = now;
  call.out = std::move(out);
  call.timer = timers_.emplace(deadline, id);
  calls_.emplace(id, std::move(call));
  if (peer.waiting_since == kNever) {
    peer.waiting_since = now;
    peer.next_check = now + config_.ping_interval;
  }
  peer.calls.insert(id);
  peer.sending.push_back(id);
  if (calls_.at(id).out.header.total_bytes > Limits::kCreditBytes)
    send_ping(now, peer_id, peer); // how far away it is decides whether stripes are worth it
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
  finish(now, id, {Error{ErrorCode::kCancelled, "cancelled by the caller"}});
  pump(now, peer_id, peers_[peer_id]);
}

void Client::fail_all(Time now, const Error& error) {
  while (!calls_.empty())
    finish(now, calls_.begin()->first, {error});
  for (auto& [id, ping] : pings_)
    ping.done(error, 0);
  pings_.clear();
}

// Chunks of several calls take turns, so a small call never waits for the whole of a large one.
void Client::pump(Time now, PeerId id, Peer& peer) {
  watch_stripes(now, id, peer);
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
    if (send_next(now, peer, call) != Sent::kAccepted) {
      if (!striped(peer, call)) {
        peer.sending.push_front(next);
        return;
      }
      peer.sending.push_back(next); // stripes are full; the first connection may not be
      ++stalled;
      continue;
    }
    stalled = 0;
    if (!call.sending.done())
      peer.sending.push_back(next);
  }
}

Sent Client::send_next(Time now, Peer& peer, OpenCall& call) {
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
  const Sent sent = striped(peer, call) ? send_striped(peer, header, chunk)
                                        : link_.send(call.peer, header, chunk);
  if (sent == Sent::kAccepted) {
    if (!call.called)
      call.sent = now;
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

void Client::finish(Time now, const RequestId& id, Outcome outcome) {
  const auto found = calls_.find(id);
  if (found == calls_.end())
    return;
  ReplySink* sink = found->second.sink;
  outcome.elapsed = now - found->second.started;
  outcome.peer = found->second.peer;
  outcome.resends = found->second.out.header.attempt;
  Peer& peer = peers_[found->second.peer];
  peer.calls.erase(id);
  std::erase(peer.sending, id);
  timers_.erase(found->second.timer);
  calls_.erase(found);
  sink->on_done(outcome);
}

void Client::on_frames(Time now, PeerId connection, ByteView header, ByteView chunk) {
  const auto message = decode(header);
  if (!message)
    return;
  const PeerId peer_id = first_connection(connection);
  if (connection != peer_id) {
    const auto found = peers_.find(peer_id);
    if (found == peers_.end() || std::holds_alternative<GoAway>(*message))
      return; // the first connection says the same
    if (const auto* pong = std::get_if<Pong>(&*message)) {
      if (!joined(found->second, connection, *pong))
        reconnect(now, peer_id, found->second);
      return;
    }
  }
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
    finish(now, message.id,
           {Error{ErrorCode::kSchemaMismatch,
                  "the server's result has other tensors than the caller expects"}});
    return;
  }
  call.result = message;
  call.receiving = PieceSet(message.tensors);
  call.window = CreditWindow(message.total_bytes);
  take_bytes(now, message.id, call, 0, chunk);
  pump(now, peer_id, peers_[peer_id]);
}

void Client::handle(Time now, PeerId peer_id, const Data& message, ByteView chunk) {
  const auto found = calls_.find(message.id);
  if (found == calls_.end() || found->second.peer != peer_id || !found->second.result)
    return;
  take_bytes(now, message.id, found->second, message.offset, chunk);
  add_stripes(now, peer_id, peers_[peer_id]);
  pump(now, peer_id, peers_[peer_id]);
}

void Client::take_bytes(Time now, const RequestId& id, OpenCall& call, uint64_t offset,
                        ByteView chunk) {
  if (!call.receiving.done()) {
    const PieceSet::Taken taken = call.receiving.take(offset, chunk.size());
    if (taken == PieceSet::Taken::kRepeated)
      return;
    if (taken == PieceSet::Taken::kWrong) {
      finish(now, id, {Error{ErrorCode::kProtocol, "the server's result has no such piece"}});
      return;
    }
    call.sink->on_bytes(offset, chunk);
    peers_[call.peer].received += chunk.size();
  }
  if (call.receiving.done()) {
    const ResultMessage& result = *call.result;
    finish(now, id,
           {Error{}, result.queue_us, result.service_us, result.batch_rows, result.wait_us});
    return;
  }
  if (const uint64_t limit = call.window.grant(call.receiving.received()); limit != 0)
    send_control(call.peer, peers_[call.peer], Credit{id, limit, call.receiving.received()});
}

void Client::handle(Time now, PeerId peer_id, const Credit& message, ByteView) {
  const auto found = calls_.find(message.id);
  if (found == calls_.end() || found->second.peer != peer_id)
    return;
  OpenCall& call = found->second;
  call.credit = std::max(call.credit, message.limit);
  call.known = true;
  Peer& peer = peers_[peer_id];
  peer.sent += message.received - std::min(call.arrived, message.received);
  call.arrived = std::max(call.arrived, message.received);
  add_stripes(now, peer_id, peer);
  pump(now, peer_id, peer);
}

void Client::handle(Time now, PeerId peer_id, const ErrorMessage& message, ByteView chunk) {
  const auto found = calls_.find(message.id);
  if (found == calls_.end() || found->second.peer != peer_id)
    return;
  Error error{message.code, message.message};
  if (error.code == ErrorCode::kNone)
    error.code = ErrorCode::kProtocol;
  error.detail = as_text(chunk.first(std::min(chunk.size(), Limits::kErrorTextBytes)));
  error.retry_after_ms = static_cast<uint32_t>(message.retry_after_ms);
  finish(now, message.id, {error});
}

void Client::on_writable(Time now, PeerId connection) {
  const PeerId id = first_connection(connection);
  if (const auto found = peers_.find(id); found != peers_.end())
    pump(now, id, found->second);
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
    finish(now, id,
           {Error{ErrorCode::kDeadlineExceeded, std::string("the deadline passed ") + phase}});
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

Time Client::next_deadline() const {
  Time next = timers_.empty() ? kNever : timers_.begin()->first;
  for (const auto& [id, ping] : pings_)
    next = std::min(next, ping.deadline);
  for (const auto& [id, peer] : peers_)
    next = std::min(next, peer.next_check);
  return next;
}

} // namespace lah::rpc
