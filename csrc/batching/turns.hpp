// Whose turn it is on one device: by priority, age, and how much of the device the peer has had.
#pragma once

#include <algorithm>
#include <unordered_map>

#include "rpc/server.hpp"

namespace lah::batching {

// One level of priority is worth this much waiting: a request of priority p goes before those of
// priority 0 that came less than p times as long before it, so none waits for ever.
inline constexpr Duration kAgeing = kSecond;

// Orders waiting requests by urgency, a time; the lower goes first. It is the request's arrival,
// earlier by kAgeing for each level of priority. For a peer that has had much of the device it is
// no earlier than what would have been its turn had the peers that wait shared the device evenly
// (start-time fair queueing: Goyal, Vin, Cheng 1997): who sends a flood delays himself. Priority
// brings a peer's requests forward within its share, and does not add to that.
class Turns {
public:
  Time urgency(const rpc::IncomingCall& call) const {
    const auto found = peers_.find(call.key.peer);
    const Time from = found == peers_.end() ? call.arrived : base(call, found->second);
    return from - call.header.priority * kAgeing;
  }

  void come(rpc::PeerId id, Time now) {
    forget(now);
    active_ += ++peers_[id].waiting == 1 ? 1 : 0;
  }

  void leave(rpc::PeerId id) {
    const auto found = peers_.find(id);
    if (found != peers_.end() && found->second.waiting > 0)
      active_ -= --found->second.waiting == 0 ? 1 : 0;
  }

  // A waiting request is to be run, which takes so much of the device's time.
  void charge(const rpc::IncomingCall& call, Duration cost) {
    Peer& peer = peers_[call.key.peer];
    peer.turn = base(call, peer) + cost * static_cast<Duration>(active_);
  }

private:
  static constexpr Duration kMaxDelay = 30 * kSecond; // behind others; then it is age that counts
  static constexpr size_t kKnownPeers = 64;
  struct Peer {
    Time turn = 0;
    size_t waiting = 0;
  };

  static Time base(const rpc::IncomingCall& call, const Peer& peer) {
    return std::clamp(peer.turn, call.arrived,
                      call.arrived + kMaxDelay + call.header.priority * kAgeing);
  }

  void forget(Time now) {
    if (peers_.size() < forget_at_)
      return;
    std::erase_if(peers_, [now](const auto& peer) {
      return peer.second.waiting == 0 && peer.second.turn <= now;
    });
    forget_at_ = std::max(kKnownPeers, 2 * peers_.size());
  }

  std::unordered_map<rpc::PeerId, Peer> peers_;
  size_t active_ = 0;              // peers with requests that wait
  size_t forget_at_ = kKnownPeers; // peers
};

} // namespace lah::batching
