// One node of the DHT, sans-IO: it owns no socket, clock, thread or random device. A driver feeds
// it datagrams and time, and sends what it leaves in the outbox; net/udp_driver does so for real,
// sim/ in virtual time.
#pragma once

#include <bitset>
#include <memory>

#include "dht/admission.hpp"
#include "dht/bootstrap.hpp"
#include "dht/clock_offset.hpp"
#include "dht/get_cache.hpp"
#include "dht/get_many.hpp"
#include "dht/hello.hpp"
#include "dht/listeners.hpp"
#include "dht/newcomer_gate.hpp"
#include "dht/node_state.hpp"
#include "dht/peer_memory.hpp"
#include "dht/reachability.hpp"
#include "dht/responder.hpp"
#include "dht/shared_gets.hpp"
#include "dht/store_many.hpp"
#include "dht/subscriptions.hpp"
#include "dht/table_upkeep.hpp"
#include "dht/withdrawal.hpp"

namespace lah::dht {

struct NodeConfig {
  std::string network_id;
  std::vector<Endpoint> seeds;                // at most Limits::kSeeds
  bool client_mode = false;                   // asks, never serves; enters no table
  NodeState state = {};                       // of the node's last life
  std::vector<Endpoint> local_addresses = {}; // of the machine; to tell whether it is behind a NAT
  AdmissionPolicy admission = {};
  TableSize table_size = TableSize::kDefault;
  VerifiedRecords* verified = nullptr; // shared with other nodes of the thread; outlives the node
};

struct NodeStatus {
  size_t peers = 0;   // in the routing table
  bool ready = false; // joined once, or has no seeds to join
  bool isolated = false;
  uint64_t packets_in = 0;
  uint64_t packets_out = 0;
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
  uint64_t bad_packets = 0; // malformed, not for us, or of another network
  uint64_t requests_answered = 0;
  uint64_t requests_failed = 0;   // ours, never answered
  uint64_t not_admitted = 0;      // messages of those without a valid certificate
  uint64_t refusals = 0;          // of ours, for want of one
  uint64_t newcomers_refused = 0; // packets of unknown keys, one too many
  size_t records = 0;             // held
  size_t operations = 0;          // open
  int64_t clock_offset_ms = 0;    // what our machine's clock lacks of the network's time
  Reachability::State reachability = Reachability::State::kUnknown;
  std::optional<bool> behind_nat;   // once peers told where they see us
  std::optional<Endpoint> observed; // our address as most peers see it; the port is the UDP one
};

// Work that runs on top of a node, in its time.
class NodeTask {
public:
  virtual ~NodeTask() = default;
  virtual void on_timer(Time now, WallMs wall) = 0;
  virtual Time next_deadline() const = 0;
  // The node found its way into the network, for the first time or again.
  virtual void on_joined(Time, WallMs) {}
};

class Node final : private OperationHost {
public:
  // `identity`, `cipher` and `rng` must outlive the node.
  Node(NodeConfig config, const crypto::Identity& identity, PacketCipher& cipher, Rng& rng);

  // --- driven by; `wall` is the machine's clock here
  void on_datagram(Time now, WallMs wall, const Endpoint& from, ByteView bytes);
  void on_timer(Time now, WallMs wall);
  Time next_deadline() const;
  std::vector<Datagram> take_datagrams();

  // --- asked by; `wall` is the network's time, wall(), here. Callbacks run inside a later
  // on_datagram() or on_timer(), never inside these calls.
  // `max_age`: what an earlier get of such an age found will do, if it allowed an age too; a key
  // that was empty counts for GetCache::kAbsentAge at most.
  void start_get(Time now, WallMs wall, const Id& key, Time deadline, GetOperation::Done done,
                 Consistency consistency = Consistency::kAll, Duration max_age = 0);
  void start_store(Time now, WallMs wall, Record record, Time deadline, StoreOperation::Done done);
  // Finds the nodes closest to a key, every one of them.
  void start_lookup(Time now, WallMs wall, const Id& target, Time deadline,
                    LookupOperation::Done done);
  // Many at once, in fewer packets: results as if each had been started alone.
  void start_get_many(Time now, WallMs wall, std::vector<Id> keys, Time deadline,
                      GetManyOperation::Done done, Consistency consistency = Consistency::kAll,
                      Duration max_age = 0);
  void start_store_many(Time now, WallMs wall, std::vector<Record> records, Time deadline,
                        StoreManyOperation::Done done);
  // A record of our own, at this node only.
  void store_own(const Record& record);
  // Fetches the key of whoever listens at `to`, then pings it.
  void start_ping(Time now, WallMs wall, const Endpoint& to, Time deadline,
                  PingOperation::Done done);
  // Only the key.
  void start_hello(Time now, const Endpoint& to, HelloExchange::Done done);
  // Of an operation that lives in a file of its own.
  void start(Time now, std::unique_ptr<Operation> operation, Time deadline);
  // Tells what a key holds, and then what changes there, until it is told to stop; see ListenEvent.
  // None if Limits::kSubscriptions keys are listened to.
  std::optional<ListenId> start_listen(const Id& key, Subscriptions::OnEvent on_event);
  void stop_listen(ListenId id) { subscriptions_.remove(id); }
  // Completes every open operation with what it has. For a node about to be destroyed.
  void abandon();

  // What happens next happens now. Every event says so itself; a driver says so before it lets
  // others act on the node, or their requests would start in the past and time out at once.
  void set_time(Time now, WallMs wall);

  // A later certificate of ours: peers see it with our next request to each of them.
  void renew_certificate(Buffer certificate);

  void add_task(NodeTask& task) { tasks_.push_back(&task); }
  void remove_task(NodeTask& task) { std::erase(tasks_, &task); }

  // For simulations that begin in a steady state: what an answer of this peer to a question of ours
  // would have taught the routing table, and the memory of round-trip times.
  void learn(const Contact& peer, Duration rtt, Time now);
  void recall(const Contact& peer, Duration rtt) { memory_.answered(peer, rtt, true); }

  Record sign(const Id& key, uint64_t seq, WallMs expiry_ms, Buffer payload);
  // Above every seq this identity signed, as far as clock and saved state know.
  uint64_t next_seq() const { return std::max(last_seq_ + 1, wall_); }
  NodeState save_state() const; // without the identity's seed
  NodeStatus status() const;
  bool ready() const { return ready_; }
  const Id& id() const { return id_; }
  const crypto::Identity& identity() const { return identity_; }
  const RoutingTable& table() const { return table_; }
  const Storage& storage() const { return storage_; }
  Rng& rng() { return rng_; }
  bool verify(const Record& record) override {
    return admission_.admits(record.owner, record.certificate, wall_) && verifier_.verify(record);
  }
  Time time() const { return now_; } // of the last event
  // The network's time: the machine's clock, corrected by what most peers say. Records are signed
  // and expire by it.
  WallMs wall() const { return wall_; }

private:
  using Operations = std::map<OpId, std::unique_ptr<Operation>>;
  static constexpr OpId kUpkeep = 0; // asks for the routing table, which hears every answer

  // OperationHost
  uint64_t request(OpId op, const Contact& to, Request body) override;
  std::vector<Contact> closest(const Id& target) override;
  std::vector<Id> replicas_by_time(const Id& target,
                                   const std::vector<Contact>& near) const override;
  WallMs wall_ms() const override { return wall_; }
  Time now() const override { return now_; }

  void resume(Time now, WallMs wall);
  void send(const Endpoint& to, Buffer bytes);

  // node.cpp: what datagrams do
  void on_packet(const Endpoint& from, const crypto::Packet& packet, size_t bytes);
  void on_hello(const Endpoint& from, const crypto::Packet& packet);
  void on_message(const Endpoint& from, const crypto::Packet& packet, size_t bytes);
  void on_request(const Contact& from, const RequestMessage& message, size_t bytes);
  void on_reply(const Contact& from, const ReplyMessage& message);
  void on_unadmitted_reply(const SentRequest& request);
  // Bytes sent. `known`: the peer has heard from us before.
  size_t reply_to(const Contact& from, uint64_t txid, const Reply& body, bool known);
  Reply answer(const Responder::Asker& asker, const RequestMessage& message, size_t bytes);
  void on_stored(const Record& record, bool changed);
  void notify_listeners();
  void greet(const Contact& stranger);
  void hear_of(const Contact& by, const FindReply& reply);
  void observe(const Endpoint& observed);
  std::optional<Endpoint> most_observed() const;

  // node_operations.cpp
  void begin(std::unique_ptr<Operation> operation, Time deadline);
  void launch(std::unique_ptr<Operation> operation);
  GetOperation::Done keeping(const Id& key, Consistency consistency, Duration max_age,
                             GetOperation::Done done);
  void end(OpId id); // with what it has
  void with_operation(OpId id, const std::function<void(Operation&)>& act);
  void retire_if_finished(OpId id);
  void retire(Operations::iterator operation);
  void settle(); // tells the callers of finished operations

  // node_keep.cpp
  void recall();
  void on_recalled(const PingResult& result);

  // node_observe.cpp
  bool read_only() const; // asks, does not serve: wanted so, or because nobody could reach it
  void run_reachability();
  void run_withdrawal();
  std::optional<Reply> on_observe(const Contact& from, bool proven, const ObserveRequest& request);
  size_t pass_on(const Contact& asker, uint64_t nonce);
  size_t dial_back(const Contact& by, const Contact& target, uint64_t nonce);
  std::vector<Contact> some_proven_to(size_t count,
                                      const std::function<bool(const Contact&)>& fits);

  // node_upkeep.cpp: what time does
  void run_newcomers();
  void run_requests();
  void run_bootstrap();
  void run_tick();
  void run_table_upkeep();
  void ask_way_in(const std::vector<Endpoint>& addresses);
  void ask_to_be_admitted(const Contact& peer);
  void join();
  void on_joined();
  void release_parked();
  bool looking_for_way_in() const { return open_hellos_ > 0 || joining_ || recalled_ > 0; }
  bool isolated() const;
  void note_outcome(bool answered);

  NodeConfig config_;
  const crypto::Identity& identity_;
  PacketCipher& cipher_;
  Rng& rng_;
  PuzzleNonce puzzle_{};
  Id id_;
  Time now_ = 0;
  WallMs machine_wall_ = 0;
  WallMs wall_ = 0;

  Admission admission_;
  RoutingTable table_;
  TableUpkeep upkeep_;
  Storage storage_;
  RecordVerifier verifier_;
  TokenIssuer tokens_;
  Responder responder_;
  PeerMemory memory_;
  ClockOffset clock_offset_;
  Reachability reachability_;
  Withdrawal withdrawal_;
  PendingRequests pending_;
  HelloExchange hello_;
  Bootstrap bootstrap_;
  Listeners listeners_;
  Subscriptions subscriptions_;
  Newcomers newcomers_;

  size_t open_operations() const { return operations_.size() - lingering_ + parked_.size(); }

  Operations operations_;
  size_t lingering_ = 0; // of them, told already
  std::set<std::pair<Time, OpId>> deadlines_;
  SharedGets gets_;
  GetCache cache_;
  uint64_t stores_ = 0;                            // begun by ourselves
  std::vector<std::unique_ptr<Operation>> parked_; // wait for a way into the network
  std::vector<std::unique_ptr<Operation>> finished_;
  std::set<Id> greeted_; // strangers with a PING of ours in flight
  OpId last_op_ = 0;

  std::vector<NodeTask*> tasks_;
  std::vector<Datagram> outbox_;
  std::map<std::array<uint8_t, 16>, std::pair<size_t, Endpoint>> observed_;
  NodeStatus counters_;

  bool ready_;
  bool joining_ = false;
  bool closing_ = false;
  Time joined_at_ = -1;
  size_t open_hellos_ = 0;
  size_t recalled_ = 0; // saved contacts that have neither answered nor failed
  size_t returned_ = 0; // and those that answered
  uint64_t last_seq_ = 0;
  std::bitset<32> outcomes_; // of our last requests, true if unanswered
  size_t outcome_count_ = 0;
  Time next_tick_ = 0;
  uint64_t neighbours_reach_ = 0; // how far from us Limits::kReplicas live: a distance's first word
  Time next_remember_ = 0;
  Time next_split_check_ = kNever;
  Time next_lost_check_ = 0;
  Time observe_window_ = 0;
  size_t observes_in_window_ = 0;
};

} // namespace lah::dht
