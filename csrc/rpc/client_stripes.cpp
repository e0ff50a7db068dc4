// The half of rpc::Client that spreads streams over several connections. One TCP connection moves
// at most a window a round trip, on a stock Linux some 2.5 MB; over a long link it takes several to
// use the bandwidth there is.
#include <algorithm>

#include "rpc/client.hpp"

namespace lah::rpc {
namespace {

constexpr Duration kWorthIt = 15 * kMillisecond; // nearer, one connection moves a gigabit a second
constexpr uint64_t kWindowBytes = 2'500'000;     // what one connection moves a round trip, at best
constexpr size_t kGrowth = 2;                    // connections become so many times more at once
constexpr Duration kAskAgain = 1 * kSecond;      // whether a stripe is still the same connection
constexpr Duration kLost = 20 * kSecond;         // without an answer to that; data goes before it

} // namespace

bool Client::striped(const Peer& peer, const OpenCall& call) const {
  return call.known && call.called &&
         std::any_of(peer.stripes.begin(), peer.stripes.end(),
                     [](const Stripe& stripe) { return stripe.number != 0; });
}

// The next of the stripes that takes it.
Sent Client::send_striped(Peer& peer, ByteView header, const Chunk& chunk) {
  for (size_t tried = 0; tried < peer.stripes.size(); ++tried) {
    const Stripe& stripe = peer.stripes[++peer.turn % peer.stripes.size()];
    if (stripe.number != 0 && link_.send(stripe.connection, header, chunk) == Sent::kAccepted)
      return Sent::kAccepted;
  }
  return Sent::kWouldBlock;
}

// More of them if those that there are move nearly what their windows allow.
void Client::add_stripes(Time now, PeerId id, Peer& peer) {
  if (!peer.rtt.known() || peer.rtt.srtt() < kWorthIt || peer.connection == 0 || peer.unstriped)
    return;
  const Duration since = now - peer.counted;
  if (since < 2 * peer.rtt.srtt())
    return;
  const uint64_t moved = std::max(std::exchange(peer.sent, 0), std::exchange(peer.received, 0));
  peer.counted = now;
  const size_t connections = 1 + peer.stripes.size();
  const double a_round_trip = static_cast<double>(moved) * static_cast<double>(peer.rtt.srtt()) /
                              static_cast<double>(since);
  if (connections >= Limits::kStripes ||
      a_round_trip < 0.6 * static_cast<double>(connections * kWindowBytes))
    return;
  const size_t more = std::min(kGrowth * connections, Limits::kStripes) - connections;
  for (size_t i = 0; i < more; ++i) {
    Stripe& stripe = peer.stripes.emplace_back();
    stripe.connection = stripe_of(id, peer.stripes.size());
    join(now, peer, stripe);
  }
}

void Client::join(Time now, Peer& peer, Stripe& stripe) {
  rng_.fill(std::as_writable_bytes(std::span(stripe.asked)));
  const Buffer message = encode(Join{stripe.asked, peer.connection});
  stripe.waiting = true;
  stripe.asked_at = link_.send(stripe.connection, message, {}) == Sent::kAccepted ? now : kNever;
}

// A stripe that silently reconnected has lost what it carried. Only asking tells.
void Client::watch_stripes(Time now, PeerId id, Peer& peer) {
  for (Stripe& stripe : peer.stripes) {
    if (stripe.waiting && stripe.asked_at != kNever && now - stripe.asked_at > kLost) {
      peer.unstriped = stripe.number == 0;
      return peer.unstriped ? drop_stripes(peer) : reconnect(now, id, peer);
    }
    if (stripe.asked_at == kNever || (!stripe.waiting && now - stripe.asked_at > kAskAgain))
      join(now, peer, stripe);
  }
}

// False if the stripe is another connection than it was.
bool Client::joined(Peer& peer, PeerId connection, const Pong& message) {
  const auto stripe =
      std::find_if(peer.stripes.begin(), peer.stripes.end(),
                   [&](const Stripe& each) { return each.connection == connection; });
  if (stripe == peer.stripes.end() || stripe->asked != message.id)
    return true;
  const uint64_t former = std::exchange(stripe->number, message.connection);
  stripe->waiting = false;
  return former == 0 || former == message.connection;
}

void Client::drop_stripes(Peer& peer) {
  for (const Stripe& stripe : std::exchange(peer.stripes, {}))
    link_.reset(stripe.connection);
}

// What one stripe lost is part of calls whose other parts went elsewhere, so all of the peer's
// connections are made anew; the ping over the new first one then finds every call that was open.
void Client::reconnect(Time now, PeerId id, Peer& peer) {
  drop_stripes(peer);
  link_.reset(id);
  ping(now, id, now + config_.silence, [](const Error&, Duration) {});
}

} // namespace lah::rpc
