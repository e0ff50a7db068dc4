#pragma once

#include "dht/beam_search.hpp"
#include "dht/declarer.hpp"
#include "dht/expert_search.hpp"
#include "dht/ready_waiters.hpp"
#include "dht/value_listener.hpp"
#include "net/net_thread.hpp"
#include "net/udp_socket.hpp"

namespace lah::net {

// Runs one DHT node on the network thread, over one UDP socket.
class UdpDriver final : public Service {
public:
  // What lives on the network thread, and may be touched only there.
  struct Core {
    Core(dht::NodeConfig config, const crypto::Identity& owner, Rng& rng,
         crypto::KeyAgreements& agreements)
        : identity(owner), cipher(identity, config.network_id, rng, &agreements),
          node(std::move(config), identity, cipher, rng), declarer(node), search(node),
          beam(node,
               [this](const auto& key, uint64_t boot) { return search.is_suspect(key, boot); }),
          ready(node) {}

    const crypto::Identity identity;
    dht::SealedCipher cipher;
    dht::Node node;
    dht::Declarer declarer;
    dht::ExpertSearch search;
    dht::BeamSearch beam;
    dht::ReadyWaiters ready;
    std::map<uint64_t, dht::ValueListener> listeners; // by tickets of Python's
  };
  // `wall` is the node's.
  using Command = std::function<void(Core& core, Time now, WallMs wall)>;

  static Result<std::unique_ptr<UdpDriver>> open(NetThread& thread,
                                                 const crypto::Identity& identity,
                                                 const Endpoint& bind, dht::NodeConfig config);
  ~UdpDriver() override; // not on the network thread; every open operation is completed first
  UdpDriver(const UdpDriver&) = delete;
  UdpDriver& operator=(const UdpDriver&) = delete;

  uint16_t port() const { return socket_.port(); }
  // From any thread. A command posted to a driver never runs after its destructor returned.
  void post(Command command);
  void run_and_wait(const Command& command);

  void on_ready(int fd, Time now) override;
  void on_timer(Time now) override;
  Time next_deadline() const override { return core_->node.next_deadline(); }

private:
  UdpDriver(NetThread& thread, UdpSocket socket) : thread_(thread), socket_(std::move(socket)) {}
  void run(const Command& command);
  void flush();

  NetThread& thread_;
  UdpSocket socket_;
  std::unique_ptr<Core> core_;
};

} // namespace lah::net
