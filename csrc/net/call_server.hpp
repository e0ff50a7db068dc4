// The serving end of expert calls: one ROUTER, driven by rpc::Server, in front of a Batcher.
#pragma once

#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "batching/local_calls.hpp"
#include "net/admission.hpp"

namespace lah::net {

class CallServer final : public Service, public batching::ReplyPort, private rpc::Link {
public:
  // `encrypted` false listens without CURVE; the caller makes sure that the address is loopback.
  CallServer(NetThread& thread, ZmqContext& zmq, crypto::Identity identity,
             batching::Batcher& batcher, batching::LocalCalls& answers, ByteAllocator& allocator,
             uint64_t boot_id, AccessList access = {});
  // Tells the callers, waits a moment for them to hang up, stops listening; later answers are
  // dropped.
  ~CallServer() override;

  // The port listened on (`address.port` 0 picks one), or why not.
  Result<uint16_t> listen(const Endpoint& address, bool encrypted);
  rpc::Server::Counters counters();
  Admission::Counters admission();
  // This key may not connect any more; what it sent is dropped, its connections are ended. False if
  // the list is full.
  bool deny(const crypto::ExchangeKey& key);

  void reply(const rpc::CallKey& key, rpc::OutgoingResult result) override;
  void fail(const rpc::CallKey& key, const Error& error) override;

  void on_ready(int fd, Time now) override;
  void on_timer(Time now) override;
  Time next_deadline() const override;

private:
  struct Connection {
    std::string route;
    Sender sender;
  };

  rpc::Sent send(rpc::PeerId peer, ByteView header, const rpc::Chunk& chunk) override;
  void release(rpc::PeerId peer) override;
  std::string_view caller(rpc::PeerId peer) const override;
  std::optional<rpc::PeerId> peer_of(Time now, ByteView route, Frame& header);
  void drop_closed(Time now);
  void drop(const std::vector<rpc::PeerId>& peers);
  std::vector<rpc::PeerId> peers_if(const std::function<bool(const Sender&)>& condition) const;
  void drain(Time now);
  void note_if_all_left();

  NetThread& thread_;
  ZmqContext& zmq_;
  crypto::Identity identity_;
  batching::LocalCalls& answers_;
  rpc::Server server_;
  Admission admission_;
  zmq::socket_t socket_;
  uint16_t port_ = 0;
  Time retry_at_ =
      kNever; // the last turn ended with messages left, or with peers that could not take more

  std::unordered_map<std::string, rpc::PeerId> peers_;
  std::unordered_map<rpc::PeerId, Connection> connections_;
  std::unordered_set<rpc::PeerId> blocked_;
  rpc::PeerId next_peer_ = 1;

  bool leaving_ = false; // every caller is told so, and nothing else
  std::mutex left_mutex_;
  std::condition_variable left_;
  bool all_left_ = false;
};

} // namespace lah::net
