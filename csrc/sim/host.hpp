#pragma once

#include "sim/hash_cipher.hpp"
#include "sim/virtual_network.hpp"

namespace lah::sim {

// One node, and what its machine knows of it.
struct VirtualNetwork::Host {
  Host(const crypto::Identity& owner, uint64_t seed, dht::NodeConfig node_config)
      : identity(owner), rng(seed), config(std::move(node_config)) {}

  void boot(CipherKind kind) {
    node.reset();
    if (kind == CipherKind::kSealed)
      cipher = std::make_unique<dht::SealedCipher>(identity, config.network_id, rng);
    else
      cipher = std::make_unique<HashCipher>(identity.public_key(), config.network_id, rng);
    node = std::make_unique<dht::Node>(config, identity, *cipher, rng);
    timer_at = kNever;
  }
  bool runs() const { return up && !frozen; }
  Time next_deadline() const { return actor ? actor->next_deadline() : node->next_deadline(); }

  const crypto::Identity identity;
  SeededRng rng;
  dht::NodeConfig config;
  int64_t clock_skew_ms = 0;
  Geography::Region region = Geography::kEurope;
  Endpoint endpoint;
  std::optional<Nat> nat;
  std::unique_ptr<dht::PacketCipher> cipher;
  std::unique_ptr<dht::Node> node; // idle where an actor stands
  std::shared_ptr<Actor> actor;
  bool up = true;
  bool frozen = false;
  bool passive = false;
  std::deque<Delivery> waiting; // for a frozen node to thaw
  Time timer_at = kNever;       // the earliest timer planned
};

} // namespace lah::sim
