#pragma once

#include <unordered_map>

#include "base/limits.hpp"
#include "base/rtt.hpp"
#include "dht/token.hpp"

namespace lah::dht {

// What is worth remembering about peers, in the routing table or not: how long their answers take,
// and the token they gave us.
class PeerMemory {
public:
  Duration rto(const PublicKey& peer) const {
    const auto found = peers_.find(peer);
    return found != peers_.end() && found->second.rtt.known() ? found->second.rtt.rto()
                                                              : network_.rto();
  }
  std::optional<Duration> rtt(const PublicKey& peer) const {
    const auto found = peers_.find(peer);
    return found != peers_.end() && found->second.rtt.known()
               ? std::optional(found->second.rtt.srtt())
               : std::nullopt;
  }
  void answered(const PublicKey& peer, Duration rtt, bool retransmitted) {
    State& state = at(peer);
    if (retransmitted) {
      state.rtt.back_off();
      return;
    }
    state.rtt.sample(rtt);
    network_.sample(rtt);
  }
  void remember(const PublicKey& peer, const Token& token) { at(peer).token = token; }
  // The peer does not know us any more: it may want to see all of what we show at first.
  void forget_token(const PublicKey& peer) {
    if (const auto found = peers_.find(peer); found != peers_.end())
      found->second.token.reset();
  }
  void forget_tokens() {
    for (auto& [peer, state] : peers_)
      state.token.reset();
  }
  std::optional<Token> token(const PublicKey& peer) const {
    const auto found = peers_.find(peer);
    return found == peers_.end() ? std::nullopt : found->second.token;
  }

private:
  struct State {
    RttEstimator rtt;
    std::optional<Token> token;
  };
  struct KeyHash {
    size_t operator()(const PublicKey& key) const noexcept {
      size_t value = 0;
      std::memcpy(&value, key.data() + 8, sizeof(value));
      return value;
    }
  };

  State& at(const PublicKey& peer) {
    if (peers_.size() >= Limits::kPeerMemory && !peers_.contains(peer))
      peers_.clear(); // all of it can be learnt again within one round trip
    return peers_[peer];
  }

  std::unordered_map<PublicKey, State, KeyHash> peers_;
  NetworkRtt network_;
};

} // namespace lah::dht
