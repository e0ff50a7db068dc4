// The trainer's end of expert calls: one DEALER a peer, driven by rpc::Client.
#pragma once

#include <atomic>
#include <optional>

#include "base/endpoint.hpp"
#include "net/call_group.hpp"
#include "net/socket_monitor.hpp"
#include "net/tcp_probes.hpp"
#include "net/zmq_context.hpp"

namespace lah::net {

class CallClient final : public Service, private rpc::Link {
public:
  CallClient(NetThread& thread, ZmqContext& zmq, crypto::Identity identity);
  ~CallClient() override; // ends every call with kShuttingDown

  // From any thread.
  // The connection to an address and key; without a key it is unencrypted. Connecting goes on in
  // the background.
  rpc::PeerId connect(const Endpoint& address, std::optional<crypto::PublicKey> key);
  void start(std::shared_ptr<CallGroup> group);
  void cancel(std::shared_ptr<CallGroup> group); // whatever of it is still open
  void ping(rpc::PeerId peer, Duration timeout, rpc::Client::PingDone done);
  // The peers that owe an answer and are silent, until they are heard again.
  std::vector<rpc::PeerId> down() const;
  rpc::ReplicaCalls::Counters counters();

  void on_ready(int fd, Time now) override;
  void on_timer(Time now) override;
  Time next_deadline() const override;

private:
  struct Connection {
    zmq::socket_t socket;
    bool blocked = false;
    std::unique_ptr<SocketMonitor> handshake; // until the server was heard; goes before the socket
  };
  struct Address {
    Endpoint endpoint;
    std::optional<crypto::PublicKey> key;
    auto operator<=>(const Address&) const = default;
  };

  rpc::Sent send(rpc::PeerId peer, ByteView header, const rpc::Chunk& chunk) override;
  void release(rpc::PeerId peer) override;
  void reset(rpc::PeerId peer) override;
  void probe(rpc::PeerId peer) override;
  Address address_of(rpc::PeerId peer) const;
  Connection* open(rpc::PeerId peer);
  void end_handshake(Connection& connection);
  bool not_permitted(Time now, rpc::PeerId peer, Connection& connection);
  void drain(Time now, rpc::PeerId peer, Connection& connection);
  void drain_touched(Time now);
  void drop_ended_groups();
  void close_released();
  void close(rpc::PeerId peer);
  void unwatch(int fd);

  NetThread& thread_;
  ZmqContext& zmq_;
  crypto::Identity identity_;
  rpc::Client client_;
  rpc::ReplicaCalls calls_;
  TcpProbes probes_;

  mutable std::mutex mutex_;
  std::map<Address, rpc::PeerId> peers_;
  std::vector<Address> addresses_; // of peer i + 1
  std::set<rpc::PeerId> down_;

  std::map<rpc::PeerId, Connection> connections_; // of a peer, and of its stripes
  std::vector<std::map<rpc::PeerId, Connection>::node_type> closing_; // at the end of the turn
  std::map<int, rpc::PeerId> descriptors_;
  std::vector<rpc::PeerId> touched_;  // sockets whose edge-triggered events must be asked again
  std::vector<rpc::PeerId> released_; // to be closed at the end of the turn
  std::vector<rpc::PeerId> refused_;  // to be reported then
  std::vector<std::shared_ptr<CallGroup>> groups_; // open ones: rpc::Client points into them
};

} // namespace lah::net
