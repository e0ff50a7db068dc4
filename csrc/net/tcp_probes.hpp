// Asks whether anything listens at an address, by a bare TCP connection that is closed at once: a
// refusal tells a dead process from a slow one without waiting.
#pragma once

#include <map>
#include <optional>

#include "base/endpoint.hpp"
#include "net/net_thread.hpp"
#include "rpc/link.hpp"

namespace lah::net {

class TcpProbes {
public:
  TcpProbes(NetThread& thread, Service& owner) : thread_(thread), owner_(owner) {}
  ~TcpProbes();
  TcpProbes(const TcpProbes&) = delete;
  TcpProbes& operator=(const TcpProbes&) = delete;

  // One at a time for each peer; true if it was refused at once. Else the owner's on_ready() hears
  // of its end.
  bool start(Time now, rpc::PeerId peer, const Endpoint& address);
  // The peer whose address refused, if `fd` is a probe that ended so.
  std::optional<rpc::PeerId> take_refused(int fd);
  void expire(Time now);
  Time next_deadline() const;

private:
  struct Probe {
    rpc::PeerId peer;
    Time started;
  };
  void close(std::map<int, Probe>::iterator probe);

  NetThread& thread_;
  Service& owner_;
  std::map<int, Probe> probes_; // by descriptor
};

} // namespace lah::net
