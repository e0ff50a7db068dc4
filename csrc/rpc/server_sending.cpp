// The half of rpc::Server that sends: turns, credits, and several connections of one caller.
#include <algorithm>

#include "rpc/server.hpp"

namespace lah::rpc {

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
    const Sent sent = send_next(id, peer, front);
    if (sent == Sent::kWouldBlock) {
      if (!front.known || peer.stripes.empty())
        return;
      peer.sending.push_back(std::move(front)); // stripes are full; the first connection may not be
      peer.sending.pop_front();
      ++stalled;
      continue;
    }
    if (sent == Sent::kGone)
      return forget(id);
    stalled = 0;
    if (more && !front.sending.done())
      peer.sending.push_back(std::move(front));
    peer.sending.pop_front();
  }
}

Sent Server::send_next(PeerId id, Peer& peer, Outgoing& outgoing) {
  Chunk chunk;
  Piece piece;
  if (!outgoing.sending.done()) {
    piece = outgoing.sending.next();
    if (outgoing.keep)
      chunk = {outgoing.tensors[piece.tensor].subspan(piece.begin, piece.size), outgoing.keep};
    else
      chunk = {ByteView(outgoing.bytes.get() + piece.offset, piece.size), outgoing.bytes};
  } else {
    chunk.bytes = outgoing.text;
  }
  const bool first = !outgoing.header.empty();
  const Buffer data = first ? Buffer{} : encode(Data{outgoing.id, piece.offset});
  const Sent sent = !first && outgoing.known && !peer.stripes.empty()
                        ? send_striped(id, peer, data, chunk)
                        : link_.send(id, first ? outgoing.header : data, chunk);
  if (sent == Sent::kAccepted) {
    outgoing.header.clear();
    if (piece.size > 0)
      outgoing.sending.advance(piece.size);
  }
  return sent;
}

void Server::on_writable(PeerId connection) {
  const PeerId first = first_of(connection);
  if (const auto found = peers_.find(connection); found != peers_.end())
    pump(connection, found->second);
  if (const auto found = peers_.find(first); first != connection && found != peers_.end())
    pump(first, found->second);
}

PeerId Server::first_of(PeerId connection) const {
  const auto found = peers_.find(connection);
  return found == peers_.end() || found->second.first == 0 ? connection : found->second.first;
}

// Whoever knows the number of a connection is not yet its caller: the keys must be the same.
void Server::handle(Time, PeerId stripe, const Join& join, ReceivedChunk&) {
  const auto found = peers_.find(join.connection);
  const std::string_view caller = link_.caller(stripe);
  if (caller.empty() || stripe == join.connection || found == peers_.end() ||
      found->second.first != 0 || link_.caller(join.connection) != caller) {
    ++counters_.bad_frames;
    return;
  }
  std::vector<PeerId>& stripes = found->second.stripes;
  if (std::find(stripes.begin(), stripes.end(), stripe) == stripes.end()) {
    if (stripes.size() + 1 >= Limits::kStripes) // the caller has lost that one
      stripes.erase(stripes.begin());
    stripes.push_back(stripe);
  }
  peers_[stripe].first = join.connection;
  Outgoing pong;
  pong.header = encode(Pong{join.id, boot_id_, stripe});
  pong.id = join.id;
  send(stripe, std::move(pong));
}

// The next of the stripes that takes it. What a stripe takes and then loses, its caller finds out.
Sent Server::send_striped(PeerId id, Peer& peer, ByteView header, const Chunk& chunk) {
  for (size_t tried = 0; tried < peer.stripes.size(); ++tried) {
    const PeerId stripe = peer.stripes[++peer.turn % peer.stripes.size()];
    const Sent sent = link_.send(stripe, header, chunk);
    if (sent == Sent::kAccepted)
      return sent;
    if (sent == Sent::kGone)
      std::erase(peer.stripes, stripe);
  }
  return peer.stripes.empty() ? link_.send(id, header, chunk) : Sent::kWouldBlock;
}

} // namespace lah::rpc
