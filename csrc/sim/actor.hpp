#pragma once

#include "dht/hello.hpp"

namespace lah::sim {

// What stands at an address in place of a node: somebody who does not play by the rules.
class Actor {
public:
  virtual ~Actor() = default;
  // Both return what it sends.
  virtual std::vector<dht::Datagram> on_datagram(Time now, const Endpoint& from,
                                                 ByteView bytes) = 0;
  virtual std::vector<dht::Datagram> on_timer(Time now) = 0;
  virtual Time next_deadline() const = 0;
};

} // namespace lah::sim
