#include "rpc/server.hpp"

namespace lah::rpc {

Server::Server(Link& link, CallHandler& handler, ByteAllocator& allocator, uint64_t boot_id)
    : link_(link), handler_(handler), allocator_(allocator), boot_id_(boot_id) {}

void Server::on_frames(Time now, PeerId peer, ByteView header, ReceivedChunk chunk) {
  const auto message = decode(header);
  if (!message || chunk.bytes.size() > Limits::kChunkBytes) {
    ++counters_.bad_frames;
    return;
  }
  std::visit(
      [&](const auto& known) {
        if constexpr (requires { handle(now, peer, known, chunk); })
          handle(now, peer, known, chunk);
        else
          ++counters_.bad_frames; // only servers send those
      },
      *message);
}

std::optional<Error> Server::refuse(const Peer& peer, const Call& call) const {
  if (peer.open_calls >= Limits::kPeerCalls)
    return Error{ErrorCode::kOverloaded,
                 "more than " + std::to_string(Limits::kPeerCalls) + " open calls", "", 100};
  if (peer.receiving_bytes + call.total_bytes > Limits::kPeerBytes ||
      receiving_bytes_ + call.total_bytes > Limits::kServerBytes)
    return Error{ErrorCode::kOverloaded, "receive budget is full", "", 200};
  return std::nullopt;
}

void Server::handle(Time now, PeerId peer_id, const Call& call, ReceivedChunk& chunk) {
  const CallKey key{peer_id, call.id};
  ++counters_.calls;
  if (call.method == Method::kInfo)
    return answer_info(key, call);
  Peer& peer = peers_[peer_id];
  if (incoming_.contains(key)) {
    ++counters_.bad_frames;
    return;
  }
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
  incoming.receiving = StreamCursor(call.tensors);
  const uint64_t first = incoming.receiving.done() ? 0 : incoming.receiving.next().size;
  if (chunk.bytes.size() != first)
    return send_error(peer_id, call.id, {ErrorCode::kProtocol, "first chunk of a wrong length"});
  ++peer.open_calls;
  if (incoming.receiving.whole()) {
    submit(key, std::move(incoming), &chunk);
    return;
  }
  incoming.buffer = allocator_.allocate(call.total_bytes);
  if (!incoming.buffer) {
    --peer.open_calls;
    ++counters_.refused;
    return send_error(peer_id, call.id, {ErrorCode::kOverloaded, "out of memory", "", 1000});
  }
  peer.receiving_bytes += call.total_bytes;
  receiving_bytes_ += call.total_bytes;
  incoming_.emplace(key, std::move(incoming));
  handle(now, peer_id, Data{call.id, 0}, chunk);
}

void Server::handle(Time, PeerId peer_id, const Data& data, ReceivedChunk& chunk) {
  const auto found = incoming_.find({peer_id, data.id});
  if (found == incoming_.end())
    return; // refused, cancelled or expired: the rest of its stream is dropped
  Incoming& incoming = found->second;
  const Piece expected = incoming.receiving.next();
  if (data.offset != expected.offset || chunk.bytes.size() != expected.size) {
    ++counters_.bad_frames;
    drop_incoming(found->first);
    return send_error(peer_id, data.id, {ErrorCode::kProtocol, "the request stream has a gap"});
  }
  std::memcpy(incoming.buffer.get() + data.offset, chunk.bytes.data(), chunk.bytes.size());
  incoming.receiving.advance(expected.size);
  if (incoming.receiving.done()) {
    const CallKey key = found->first;
    Incoming complete = std::move(found->second);
    peers_[peer_id].receiving_bytes -= complete.header.total_bytes;
    receiving_bytes_ -= complete.header.total_bytes;
    incoming_.erase(found);
    submit(key, std::move(complete), nullptr);
  } else if (const uint64_t limit = incoming.window.grant(incoming.receiving.offset())) {
    Outgoing credit;
    credit.header = encode(Credit{data.id, limit});
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
  handler_.submit(std::move(call));
}

void Server::answer_info(const CallKey& key, const Call& call) {
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
  ++peers_[key.peer].open_calls;
  reply(key, std::move(result));
}

void Server::handle(Time, PeerId peer_id, const Credit& credit, ReceivedChunk&) {
  Peer& peer = peers_[peer_id];
  for (Outgoing& outgoing : peer.sending)
    if (outgoing.id == credit.id)
      outgoing.credit = std::max(outgoing.credit, credit.limit);
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
  handler_.cancel(key);
}

void Server::handle(Time, PeerId peer_id, const Ping& ping, ReceivedChunk&) {
  Outgoing pong;
  pong.header = encode(Pong{ping.id, boot_id_});
  pong.id = ping.id;
  send(peer_id, std::move(pong));
}

void Server::drop_incoming(const CallKey& key) {
  const auto found = incoming_.find(key);
  Peer& peer = peers_[key.peer];
  peer.receiving_bytes -= found->second.header.total_bytes;
  receiving_bytes_ -= found->second.header.total_bytes;
  --peer.open_calls;
  incoming_.erase(found);
}

void Server::reply(const CallKey& key, OutgoingResult result) {
  const auto found = peers_.find(key.peer);
  if (found == peers_.end())
    return;
  --found->second.open_calls;
  result.header.id = key.id;
  result.header.total_bytes = stream_bytes(result.header.tensors);
  Outgoing outgoing;
  outgoing.id = key.id;
  outgoing.header = encode(result.header);
  outgoing.sending = StreamCursor(result.header.tensors);
  outgoing.bytes = std::move(result.bytes);
  send(key.peer, std::move(outgoing));
}

void Server::fail(const CallKey& key, const Error& error) {
  const auto found = peers_.find(key.peer);
  if (found == peers_.end())
    return;
  --found->second.open_calls;
  if (error.code != ErrorCode::kCancelled) // the caller of a cancelled call listens no more
    send_error(key.peer, key.id, error);
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

// Results to one peer take turns chunk by chunk; one without credit lets the others pass.
void Server::pump(PeerId id, Peer& peer) {
  size_t stalled = 0;
  while (stalled < peer.sending.size()) {
    Outgoing& front = peer.sending.front();
    const bool more = !front.sending.done();
    if (front.header.empty() && front.sending.offset() + front.sending.next().size > front.credit) {
      peer.sending.push_back(std::move(front));
      peer.sending.pop_front();
      ++stalled;
      continue;
    }
    const Sent sent = send_next(id, front);
    if (sent == Sent::kWouldBlock)
      return;
    if (sent == Sent::kGone)
      return forget(id);
    stalled = 0;
    if (more && !front.sending.done())
      peer.sending.push_back(std::move(front));
    peer.sending.pop_front();
  }
}

Sent Server::send_next(PeerId peer, Outgoing& outgoing) {
  Chunk chunk;
  Piece piece;
  if (!outgoing.sending.done()) {
    piece = outgoing.sending.next();
    chunk = {ByteView(outgoing.bytes.get() + piece.offset, piece.size), outgoing.bytes};
  } else {
    chunk.bytes = outgoing.text;
  }
  const bool first = !outgoing.header.empty();
  const Buffer data = first ? Buffer{} : encode(Data{outgoing.id, piece.offset});
  const Sent sent = link_.send(peer, first ? outgoing.header : data, chunk);
  if (sent == Sent::kAccepted) {
    outgoing.header.clear();
    if (piece.size > 0)
      outgoing.sending.advance(piece.size);
  }
  return sent;
}

void Server::on_writable(PeerId id) {
  if (const auto found = peers_.find(id); found != peers_.end())
    pump(id, found->second);
}

void Server::forget(PeerId id) {
  for (auto it = incoming_.lower_bound({id, {}}); it != incoming_.end() && it->first.peer == id;) {
    receiving_bytes_ -= it->second.header.total_bytes;
    it = incoming_.erase(it);
  }
  peers_.erase(id);
}

void Server::say_goodbye() {
  const Buffer goodbye = encode(GoAway{});
  for (const auto& [id, peer] : std::exchange(peers_, {}))
    link_.send(id, goodbye, {}); // a peer that cannot take it finds out by silence
  incoming_.clear();
  receiving_bytes_ = 0;
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
}

Time Server::next_deadline() const {
  Time next = kNever;
  for (const auto& [key, incoming] : incoming_)
    next = std::min(next, incoming.deadline);
  return next;
}

} // namespace lah::rpc
