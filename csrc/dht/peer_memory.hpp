#pragma once

#include <unordered_map>

#include "base/limits.hpp"
#include "dht/routing_table.hpp"
#include "dht/token.hpp"

namespace lah::dht {

// What is worth remembering about peers: how long their answers take, which the routing table knows
// of its members, and the token they gave us. Kept in two generations, so that what is in use stays
// and what is not is gone, with its token's worth, after two turns.
class PeerMemory {
public:
  explicit PeerMemory(const RoutingTable& table) : table_(table) {}

  Duration rto(const Contact& peer) const {
    const RttEstimator* rtt = rtt_of(peer);
    if (rtt == nullptr || !rtt->known())
      return network_.rto();
    if (rtt->backed_off())
      return rtt->rto();
    // After one sample RFC 6298 takes the variation for half of it. What is enough for strangers is
    // enough for a peer that is not much farther away than most.
    return std::min(rtt->rto(), std::max(network_.rto(), rtt->srtt() * 3 / 2));
  }
  std::optional<Duration> rtt(const Contact& peer) const {
    const RttEstimator* rtt = rtt_of(peer);
    return rtt != nullptr && rtt->known() ? std::optional(rtt->srtt()) : std::nullopt;
  }
  Duration strangers_rto() const { return network_.rto(); }
  bool has_met(const Contact& peer) const { return rtt_of(peer) != nullptr; }
  // After the routing table has seen the answer. Members of the table are near, so only those not
  // met before tell what to expect of strangers.
  void answered(const Contact& peer, std::optional<Duration> rtt, bool met) {
    if (rtt && !met)
      network_.sample(*rtt);
    if (table_.contains(peer.id))
      return;
    State& state = at(peer.key);
    if (rtt)
      state.rtt.sample(*rtt);
    else
      state.rtt.back_off();
  }
  void remember(const PublicKey& peer, const Token& token) { at(peer).token = token; }
  // The peer does not know us any more: it may want to see all of what we show at first.
  void forget_token(const PublicKey& peer) {
    for (Generation* generation : {&recent_, &older_})
      if (const auto found = generation->find(peer); found != generation->end())
        found->second.token.reset();
  }
  void forget_tokens() {
    for (Generation* generation : {&recent_, &older_})
      for (auto& [peer, state] : *generation)
        state.token.reset();
  }
  std::optional<Token> token(const PublicKey& peer) const {
    const State* state = find(peer);
    return state == nullptr ? std::nullopt : state->token;
  }
  void turn(Time now) {
    if (now - turned_at_ >= TokenIssuer::kRotation) {
      turned_at_ = now;
      turn_over();
    }
  }
  size_t size() const { return recent_.size() + older_.size(); }

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
  using Generation = std::unordered_map<PublicKey, State, KeyHash>;

  const State* find(const PublicKey& peer) const {
    for (const Generation* generation : {&recent_, &older_})
      if (const auto found = generation->find(peer); found != generation->end())
        return &found->second;
    return nullptr;
  }
  const RttEstimator* rtt_of(const Contact& peer) const {
    if (const RttEstimator* rtt = table_.rtt(peer.id))
      return rtt;
    const State* state = find(peer.key);
    return state == nullptr ? nullptr : &state->rtt;
  }
  State& at(const PublicKey& peer) {
    if (const auto found = recent_.find(peer); found != recent_.end())
      return found->second;
    if (recent_.size() >= Limits::kPeerMemory / 2)
      turn_over();
    State& state = recent_[peer];
    if (const auto found = older_.find(peer); found != older_.end())
      state = found->second;
    return state;
  }
  void turn_over() {
    older_ = std::move(recent_);
    recent_ = {};
  }

  const RoutingTable& table_;
  Generation recent_;
  Generation older_;
  NetworkRtt network_;
  Time turned_at_ = 0;
};

} // namespace lah::dht
