// A swarm of virtual nodes for tests, and the records they exchange.
#pragma once

#include "sim/virtual_network.hpp"

namespace lah::sim {

inline dht::Id named_key(const std::string& name) {
  return dht::record_key("test", as_bytes(name));
}

inline Buffer payload(std::string_view text) {
  const ByteView bytes = as_bytes(text);
  return {bytes.begin(), bytes.end()};
}

// `count` nodes, each of which joins through one of the nodes before it, and time to settle.
inline void grow(VirtualNetwork& net, size_t count, Duration settle = 30 * kSecond) {
  for (size_t i = 0; i < count; ++i) {
    VirtualNetwork::NodeOptions options;
    if (net.size() > 0)
      options.seeds = {0, net.rng().below(net.size())};
    net.add(options);
    net.run_for(milliseconds(100));
  }
  net.run_for(settle);
}

inline dht::Record record_of(VirtualNetwork& net, size_t owner, const std::string& name,
                             std::string_view text, uint64_t lifetime_ms = 300'000,
                             uint64_t seq = 0) {
  net.node(owner).set_time(net.now(), net.wall(owner));
  const WallMs wall = net.node(owner).wall();
  return net.node(owner).sign(named_key(name), seq == 0 ? wall : seq, wall + lifetime_ms,
                              payload(text));
}

inline bool holds(const dht::GetResult& result, const dht::Record& record) {
  for (const dht::Record& found : result.records)
    if (found == record)
      return true;
  return false;
}

} // namespace lah::sim
