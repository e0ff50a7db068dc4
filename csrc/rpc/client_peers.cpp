// The half of rpc::Client that watches peers: silence, restarts, reconnections.
#include "rpc/client.hpp"

namespace lah::rpc {
namespace {

std::string seconds_text(Duration duration) {
  const int64_t tenths = duration / (100 * kMillisecond);
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

} // namespace

void Client::ping(Time now, PeerId peer_id, Time deadline, PingDone done) {
  RequestId id{};
  rng_.fill(std::as_writable_bytes(std::span(id)));
  pings_.emplace(id, OpenPing{peer_id, now, deadline, std::move(done)});
  Peer& peer = peers_[peer_id];
  peer.next_check = std::min(peer.next_check, now + config_.idle);
  send_control(peer_id, peer, Ping{id});
}

void Client::send_ping(Time now, PeerId id, Peer& peer) {
  if (!peer.control.empty())
    return; // an unsent ping already waits for the connection
  ping(now, id, now + config_.silence, [](const Error&, Duration) {});
}

void Client::fail_peer(Time now, Peer& peer, const Error& error) {
  const std::set<RequestId> calls = peer.calls; // finish() edits the original
  for (const RequestId& id : calls)
    finish(now, id, {error});
}

// Down, and probed from now on until it answers again.
void Client::give_up(Time now, PeerId id, Peer& peer, const Error& error) {
  fail_peer(now, peer, error);
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

// Frames are sent in order, so a ping and what follows it share the connection that the pong names;
// what was sent before it may have been lost with an earlier one.
void Client::handle(Time now, PeerId peer_id, const Pong& message, ByteView) {
  Peer& peer = peers_[peer_id];
  const bool reconnected = peer.connection != 0 && (peer.connection != message.connection ||
                                                    peer.boot_id != message.boot_id);
  const uint64_t former_boot_id = std::exchange(peer.boot_id, message.boot_id);
  peer.connection = message.connection;
  const auto found = pings_.find(message.id);
  if (found == pings_.end())
    return;
  const OpenPing ping = std::move(found->second);
  pings_.erase(found);
  peer.rtt.sample(now - ping.sent);
  ping.done(Error{}, now - ping.sent);
  if (reconnected) {
    drop_stripes(peer); // they belong to the connection that is no more
    resend_lost(now, peer_id, peer, ping.sent, former_boot_id);
  }
}

// The server answers a repeated call that it knows, and receives anew one that it does not.
void Client::resend_lost(Time now, PeerId id, Peer& peer, Time before, uint64_t former_boot_id) {
  const std::set<RequestId> open = peer.calls; // finish() edits the original
  for (const RequestId& lost : open) {
    OpenCall& call = calls_.at(lost);
    if (!call.called || call.sent > before)
      continue;
    if (call.out.header.attempt >= Limits::kResends) {
      finish(now, lost,
             {Error{ErrorCode::kPeerUnreachable, "the connection was lost again and again"}});
      continue;
    }
    ++call.out.header.attempt;
    if (call.out.header.boot_id == 0)
      call.out.header.boot_id = former_boot_id;
    call.called = false;
    call.sending = StreamCursor(call.out.header.tensors);
    call.credit = Limits::kCreditBytes;
    call.known = false;
    call.arrived = 0;
    call.result.reset();
    call.receiving = {};
    call.window = {};
    std::erase(peer.sending, lost);
    peer.sending.push_back(lost);
  }
  pump(now, id, peer);
}

void Client::handle(Time now, PeerId peer_id, const GoAway&, ByteView) {
  Peer& peer = peers_[peer_id];
  drop_stripes(peer);
  give_up(now, peer_id, peer, {ErrorCode::kShuttingDown, "the server is shutting down"});
  peer.probe_until = peer.next_check = now + config_.farewell; // it is not silent: no probes
  link_.release(peer_id); // whoever listens there later is met anew
}

// A refusal is the word of the other machine, so there is no need to wait out the silence; but a
// server that was only just started may need a moment.
void Client::on_refused(Time now, PeerId id) {
  const auto found = peers_.find(id);
  if (found == peers_.end() || found->second.waiting_since == kNever ||
      now - found->second.waiting_since < config_.suspicion)
    return;
  give_up(now, id, found->second, {ErrorCode::kPeerUnreachable, "nothing listens at its address"});
}

void Client::on_not_permitted(Time now, PeerId id) {
  Peer& peer = peers_[id];
  peer.control.clear(); // it waited for the connection
  give_up(now, id, peer, {ErrorCode::kNotPermitted, "refused by the server's access list"});
}

// Longer than a few lost pings on a slow link.
Duration Client::silence_of(const Peer& peer) const {
  return std::max(config_.silence, peer.rtt.known() ? 8 * peer.rtt.rto() : 0);
}

bool Client::down(PeerId peer) const {
  const auto found = peers_.find(peer);
  return found != peers_.end() && found->second.down;
}

// A caller that gives up does not end the watch: a peer that owes an answer is pinged until it is
// heard or down.
void Client::check_peer(Time now, PeerId id, Peer& peer) {
  const bool owing = peer.waiting_since != kNever;
  if (owing && now - peer.waiting_since >= silence_of(peer)) {
    give_up(now, id, peer,
            {ErrorCode::kPeerUnreachable,
             peer.heard == 0 ? "no connection within " + seconds_text(now - peer.waiting_since)
                             : "silent for " + seconds_text(now - peer.heard)});
  } else if (owing) {
    peer.next_check = std::min(now + config_.ping_interval, peer.waiting_since + silence_of(peer));
    if (now - peer.waiting_since >= config_.suspicion)
      link_.probe(id);
  } else if (peer.down && now < peer.probe_until) {
    peer.next_check = now + config_.probe_interval;
  } else {
    return release(id);
  }
  send_ping(now, id, peer);
  watch_stripes(now, id, peer);
}

// A peer that was down gets another chance: whoever still knows of it may call it.
void Client::release(PeerId id) {
  drop_stripes(peers_.at(id));
  const bool was_down = peers_.at(id).down;
  peers_.erase(id);
  link_.release(id);
  if (was_down)
    on_peer_(id, true);
}

} // namespace lah::rpc
