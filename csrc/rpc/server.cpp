#include "rpc/server.hpp"

namespace lah::rpc {
namespace {

constexpr Duration kSweepPeriod = 60 * kSecond;
constexpr Duration kIdle = 600 * kSecond; // then a silent connection is forgotten

} // namespace

Server::Server(Link& link, CallHandler& handler, ByteAllocator& allocator, uint64_t boot_id)
    : link_(link), handler_(handler), allocator_(allocator), boot_id_(boot_id) {}

void Server::on_frames(Time now, PeerId peer, ByteView header, ReceivedChunk chunk) {
  const auto message = decode(header);
  if (!message || chunk.bytes.size() > Limits::kChunkBytes) {
    ++counters_.bad_frames;
    return;
  }
  peers_[peer].heard = now;
  const PeerId first = first_of(peer);
  if (const auto found = peers_.find(first); found != peers_.end())
    found->second.heard = now;
  std::visit(
      [&]<typename M>(const M& known) {
        if constexpr (std::is_same_v<M, Ping> || std::is_same_v<M, Join>)
          handle(now, peer, known, chunk);
        else if constexpr (requires { handle(now, first, known, chunk); })
          handle(now, first, known, chunk);
        else
          ++counters_.bad_frames; // only servers send those
      },
      *message);
}

std::optional<Error> Server::refuse(const Peer& peer, const Call& call) const {
  if (peer.open.size() >= Limits::kPeerCalls)
    return Error{ErrorCode::kOverloaded,
                 "more than " + std::to_string(Limits::kPeerCalls) + " open calls", "", 100};
  if (peer.held_bytes + call.total_bytes > Limits::kPeerBytes ||
      held_bytes_ + call.total_bytes > Limits::kServerBytes)
    return Error{ErrorCode::kOverloaded, "too many bytes wait to be computed", "", 200};
  return std::nullopt;
}

// Whether a call is to be received, rather than one that its caller repeats and that is known here.
// A caller repeats what may have been lost with a connection.
bool Server::is_new(PeerId peer_id, Peer& peer, const Call& call) {
  if (peer.open.contains(call.id)) { // nothing was lost on this connection
    counters_.bad_frames += call.attempt == 0 ? 1 : 0;
    return false;
  }
  const std::string_view caller = link_.caller(peer_id);
  if (const auto half = incoming_peers_.find(call.id);
      half != incoming_peers_.end() && link_.caller(half->second) == caller)
    drop_incoming({half->second, call.id}); // the rest of it will never come
  if (call.method != Method::kBackward)
    return true;
  if (BackwardMemory::Entry* known = backward_.find(call.id)) {
    answer_repeated(peer_id, peer, *known, caller);
    return false;
  }
  if (call.boot_id != 0 && call.boot_id != boot_id_) {
    send_error(peer_id, call.id,
               {ErrorCode::kPeerUnreachable, "the server restarted during the call"});
    return false;
  }
  return true;
}

void Server::answer_repeated(PeerId peer_id, Peer& peer, BackwardMemory::Entry& known,
                             std::string_view caller) {
  const RequestId id = known.id;
  if (known.caller != caller) {
    ++counters_.bad_frames;
    return send_error(peer_id, id, {ErrorCode::kProtocol, "this request id is another caller's"});
  }
  ++counters_.repeated;
  known.peer = peer_id;
  if (!known.applied)
    peer.open.insert(id); // its answer will take the new connection
  else if (known.kept)
    send_result(peer_id, known.result);
  else
    send_error(peer_id, id,
               {ErrorCode::kNotFound, "this call was applied, but its result is no longer kept"});
}

void Server::handle(Time now, PeerId peer_id, const Call& call, ReceivedChunk& chunk) {
  ++counters_.calls;
  if (call.method == Method::kInfo)
    return answer_info(now, {peer_id, call.id}, call);
  Peer& peer = peers_[peer_id];
  if (!is_new(peer_id, peer, call))
    return;
  if (const auto error = refuse(peer, call)) {
    ++counters_.refused;
    return send_error(peer_id, call.id, *error);
  }
  const auto pool = handler_.admit(call);
  if (!pool) {
    ++counters_.refused;
    return send_error(peer_id, call.id, pool.error());
  }
  Incoming incoming;
  incoming.header = call;
  incoming.pool = *pool;
  incoming.arrived = now;
  incoming.deadline = now + milliseconds(static_cast<int64_t>(call.deadline_ms));
  incoming.receiving = PieceSet(call.tensors);
  incoming.window = CreditWindow(call.total_bytes);
  receive(now, peer_id, peer, std::move(incoming), chunk);
}

void Server::receive(Time now, PeerId peer_id, Peer& peer, Incoming incoming,
                     ReceivedChunk& chunk) {
  const CallKey key{peer_id, incoming.header.id};
  const uint64_t total = incoming.header.total_bytes;
  if (chunk.bytes.size() != incoming.receiving.first())
    return send_error(peer_id, key.id, {ErrorCode::kProtocol, "first chunk of a wrong length"});
  if (total <= Limits::kChunkBytes) {
    hold(key, peer, total);
    return submit(key, std::move(incoming), &chunk);
  }
  incoming.buffer = allocator_.allocate(total);
  if (!incoming.buffer) {
    ++counters_.refused;
    return send_error(peer_id, key.id, {ErrorCode::kOverloaded, "out of memory", "", 1000});
  }
  hold(key, peer, total);
  incoming_peers_[key.id] = peer_id;
  incoming_.emplace(key, std::move(incoming));
  handle(now, peer_id, Data{key.id, 0}, chunk);
}

void Server::handle(Time, PeerId peer_id, const Data& data, ReceivedChunk& chunk) {
  const auto found = incoming_.find({peer_id, data.id});
  if (found == incoming_.end())
    return; // refused, cancelled or expired: the rest of its stream is dropped
  Incoming& incoming = found->second;
  const PieceSet::Taken taken = incoming.receiving.take(data.offset, chunk.bytes.size());
  if (taken == PieceSet::Taken::kRepeated)
    return; // over a connection that had lost nothing
  if (taken == PieceSet::Taken::kWrong) {
    ++counters_.bad_frames;
    drop_incoming({peer_id, data.id});
    return send_error(peer_id, data.id,
                      {ErrorCode::kProtocol, "the request stream has no such piece"});
  }
  std::memcpy(incoming.buffer.get() + data.offset, chunk.bytes.data(), chunk.bytes.size());
  if (incoming.receiving.done()) {
    const CallKey key = found->first;
    submit(key, take_incoming(found), nullptr);
  } else if (const uint64_t limit = incoming.window.grant(incoming.receiving.received())) {
    Outgoing credit;
    credit.header = encode(Credit{data.id, limit, incoming.receiving.received()});
    credit.id = data.id;
    send(peer_id, std::move(credit));
  }
}

void Server::submit(const CallKey& key, Incoming&& incoming, ReceivedChunk* whole) {
  IncomingCall call;
  call.key = key;
  call.pool = incoming.pool;
  call.arrived = incoming.arrived;
  call.deadline = incoming.deadline;
  call.buffer = std::move(incoming.buffer);
  if (whole != nullptr) {
    call.bytes = whole->bytes;
    call.frame = std::move(whole->owner);
  } else {
    call.bytes = {call.buffer.get(), incoming.header.total_bytes};
  }
  call.header = std::move(incoming.header);
  if (call.header.method == Method::kBackward)
    backward_.open(key.id, link_.caller(key.peer), key.peer);
  handler_.submit(std::move(call));
}

void Server::answer_info(Time now, const CallKey& key, const Call& call) {
  const auto document = handler_.describe(call.uid);
  if (!document)
    return send_error(key.peer, key.id, document.error());
  OutgoingResult result;
  result.header.tensors = {{DType::kUInt8, Codec::kRaw, {document->size()}, document->size()}};
  result.bytes = allocator_.allocate(align_up(document->size()));
  if (!result.bytes)
    return send_error(key.peer, key.id, {ErrorCode::kOverloaded, "out of memory", "", 1000});
  std::memset(result.bytes.get(), 0, align_up(document->size()));
  std::memcpy(result.bytes.get(), document->data(), document->size());
  reply(now, key, std::move(result));
}

void Server::handle(Time, PeerId peer_id, const Credit& credit, ReceivedChunk&) {
  Peer& peer = peers_[peer_id];
  for (Outgoing& outgoing : peer.sending)
    if (outgoing.id == credit.id) {
      outgoing.credit = std::max(outgoing.credit, credit.limit);
      outgoing.known = true;
    }
  pump(peer_id, peer);
}

void Server::handle(Time, PeerId peer_id, const Cancel& cancel, ReceivedChunk&) {
  const CallKey key{peer_id, cancel.id};
  if (incoming_.contains(key)) {
    drop_incoming(key);
    return;
  }
  std::erase_if(peers_[peer_id].sending,
                [&](const Outgoing& outgoing) { return outgoing.id == cancel.id; });
  const BackwardMemory::Entry* known = backward_.find(cancel.id);
  const bool moved = known != nullptr && known->caller == link_.caller(peer_id);
  handler_.cancel(moved ? CallKey{known->origin, cancel.id} : key);
}

void Server::handle(Time, PeerId peer_id, const Ping& ping, ReceivedChunk&) {
  Outgoing pong;
  pong.header = encode(Pong{ping.id, boot_id_, peer_id});
  pong.id = ping.id;
  send(peer_id, std::move(pong));
}

void Server::hold(const CallKey& key, Peer& peer, uint64_t bytes) {
  peer.open.insert(key.id);
  peer.held_bytes += bytes;
  held_bytes_ += bytes;
  held_[key] = bytes;
}

void Server::let_go(const CallKey& key) {
  const auto found = held_.find(key);
  if (found == held_.end())
    return;
  held_bytes_ -= found->second;
  if (const auto peer = peers_.find(key.peer); peer != peers_.end())
    peer->second.held_bytes -= found->second;
  held_.erase(found);
}

void Server::drop_incoming(const CallKey& key) {
  peers_[key.peer].open.erase(key.id);
  let_go(key);
  take_incoming(incoming_.find(key));
}

Server::Incoming Server::take_incoming(std::map<CallKey, Incoming>::iterator it) {
  Incoming incoming = std::move(it->second);
  incoming_peers_.erase(it->first.id);
  incoming_.erase(it);
  return incoming;
}

void Server::reply(Time now, const CallKey& key, OutgoingResult result) {
  result.header.id = key.id;
  result.header.boot_id = boot_id_;
  result.header.total_bytes = stream_bytes(result.header.tensors);
  let_go(key);
  PeerId to = key.peer;
  if (const BackwardMemory::Entry* known = backward_.find(key.id); known && known->origin == to) {
    to = known->peer;
    backward_.applied(now, key.id, result); // kept even if nobody listens just now
  }
  const auto found = peers_.find(to);
  if (found == peers_.end())
    return;
  found->second.open.erase(key.id);
  send_result(to, result);
}

void Server::send_result(PeerId peer, const OutgoingResult& result) {
  Outgoing outgoing;
  outgoing.id = result.header.id;
  outgoing.header = encode(result.header);
  outgoing.sending = StreamCursor(result.header.tensors);
  outgoing.bytes = result.bytes;
  outgoing.tensors = result.tensors;
  outgoing.keep = result.keep;
  send(peer, std::move(outgoing));
}

void Server::fail(const CallKey& key, const Error& error) {
  let_go(key);
  PeerId to = key.peer;
  if (const BackwardMemory::Entry* known = backward_.find(key.id); known && known->origin == to) {
    to = known->peer;
    backward_.failed(key.id);
  }
  const auto found = peers_.find(to);
  if (found == peers_.end())
    return;
  found->second.open.erase(key.id);
  if (error.code != ErrorCode::kCancelled) // the caller of a cancelled call listens no more
    send_error(to, key.id, error);
}

void Server::send_error(PeerId peer, const RequestId& id, const Error& error) {
  Outgoing outgoing;
  outgoing.id = id;
  const std::string message = error.message.substr(0, Limits::kHeaderBytes - 128);
  outgoing.header = encode(ErrorMessage{id, error.code, error.retry_after_ms, message});
  append(outgoing.text,
         as_bytes(error.detail).first(std::min(error.detail.size(), Limits::kErrorTextBytes)));
  send(peer, std::move(outgoing));
}

void Server::send(PeerId peer_id, Outgoing outgoing) {
  Peer& peer = peers_[peer_id];
  peer.sending.push_back(std::move(outgoing));
  pump(peer_id, peer);
}

void Server::forget(PeerId id) {
  for (auto it = incoming_.lower_bound({id, {}}); it != incoming_.end() && it->first.peer == id;) {
    let_go(it->first);
    take_incoming(it++);
  }
  const auto found = peers_.find(id);
  if (found == peers_.end())
    return;
  const auto open = std::move(found->second.open);
  peers_.erase(found);
  for (const RequestId& call : open)
    if (backward_.find(call) == nullptr) // a gradient is worth applying, and its caller may be back
      handler_.cancel({id, call});
}

// ZeroMQ does not tell when a caller has left.
void Server::forget_idle(Time now) {
  if (now < next_sweep_)
    return;
  next_sweep_ = now + kSweepPeriod;
  const Duration idle = peers_.size() > Limits::kKnownPeers ? kSweepPeriod : kIdle;
  std::vector<PeerId> left;
  for (const auto& [id, peer] : peers_)
    if (peer.open.empty() && peer.heard + idle <= now && !peers_.contains(peer.first))
      left.push_back(id);
  for (PeerId id : left) {
    peers_.erase(id);
    link_.release(id);
  }
}

void Server::say_goodbye() {
  const Buffer goodbye = encode(GoAway{});
  for (const auto& [id, peer] : std::exchange(peers_, {}))
    link_.send(id, goodbye, {}); // a peer that cannot take it finds out by silence
  incoming_.clear();
  incoming_peers_.clear();
  held_.clear();
  held_bytes_ = 0;
}

void Server::on_timer(Time now) {
  for (auto it = incoming_.begin(); it != incoming_.end();) {
    const CallKey key = it->first;
    const bool expired = it->second.deadline <= now;
    ++it;
    if (expired) {
      ++counters_.expired;
      drop_incoming(key);
    }
  }
  backward_.expire(now);
  forget_idle(now);
}

Time Server::next_deadline() const {
  Time next = std::min(peers_.empty() ? kNever : next_sweep_, backward_.next_deadline());
  for (const auto& [key, incoming] : incoming_)
    next = std::min(next, incoming.deadline);
  return next;
}

} // namespace lah::rpc
