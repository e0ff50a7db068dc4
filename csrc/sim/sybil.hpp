// Identities that one attacker made: they answer as nodes do, name nobody but each other and whom
// they invented, take every record and keep none.
#pragma once

#include <memory>

#include "sim/hash_cipher.hpp"
#include "sim/virtual_network.hpp"

namespace lah::sim {

// What all Sybils of one attacker know.
struct SybilClan {
  std::vector<dht::Contact> members;
  std::vector<dht::Contact> victims;  // whose routing tables they want to enter
  std::vector<dht::Contact> invented; // nobody is there; in order of ids
  std::string network_id = "sim";
};

class Sybil final : public Actor {
public:
  Sybil(const crypto::Identity& identity, std::shared_ptr<const SybilClan> clan, uint64_t seed);

  std::vector<dht::Datagram> on_datagram(Time now, const Endpoint& from, ByteView bytes) override;
  std::vector<dht::Datagram> on_timer(Time now) override;
  Time next_deadline() const override { return next_greeting_; }

private:
  void answer(const Endpoint& from, const dht::PublicKey& key, const dht::RequestMessage& request);
  std::vector<dht::Contact> nearest(const dht::Id& key) const;
  void invent(const dht::Id& key, std::vector<dht::Contact>& near);
  void send(const Endpoint& to, const dht::PublicKey& key, const Buffer& plaintext);

  SeededRng rng_;
  std::shared_ptr<const SybilClan> clan_;
  HashCipher cipher_;
  Time next_greeting_;
  std::vector<dht::Datagram> outbox_;
};

struct SybilOptions {
  size_t count = 100;
  size_t subnets = 4;               // they share so many /24s; 0: scattered as honest nodes are
  std::optional<dht::Id> near = {}; // each is the nearest to this key of `grinding` identities
  size_t grinding = 1;
  size_t invented = 0; // contacts nobody stands behind, named beside their own
};

// Lets them loose on all nodes there are; returns their numbers.
std::vector<size_t> add_sybils(VirtualNetwork& net, const SybilOptions& options);

} // namespace lah::sim
