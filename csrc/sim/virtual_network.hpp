// Many DHT nodes in one thread, in virtual time, over a network that loses, doubles and reorders.
// The nodes are the very objects the UDP driver runs. Same seed, same calls: same event log.
#pragma once

#include <deque>

#include "dht/node.hpp"
#include "sim/actor.hpp"
#include "sim/address_plan.hpp"
#include "sim/event_log.hpp"
#include "sim/event_queue.hpp"
#include "sim/geography.hpp"
#include "sim/nat.hpp"

namespace lah::sim {

struct Faults {
  Duration latency_min = milliseconds(10); // one way, drawn anew for each datagram: order is lost
  Duration latency_max = milliseconds(60);
  double loss = 0;      // of datagrams
  double duplicate = 0; // of datagrams
  bool regions = false; // one-way times of sim/geography instead of latency_min and latency_max
  double detour = 0;    // of datagrams, which take up to kDetour longer and arrive out of order

  static constexpr Duration kDetour = milliseconds(200);
  static Faults constant_rtt(Duration rtt) { return {rtt / 2, rtt / 2}; }
  static Faults geographic() { return {.regions = true}; }
};

enum class CipherKind : uint8_t { kSealed, kHash };

class VirtualNetwork {
public:
  VirtualNetwork(uint64_t seed, Faults faults, CipherKind cipher);
  ~VirtualNetwork();

  struct NodeOptions {
    std::vector<size_t> seeds = {}; // nodes to join
    bool client_mode = false;
    int64_t clock_skew_ms = 0;
    std::string network_id = "sim";
    NatKind nat = NatKind::kNone;
    Duration nat_timeout = 60 * kSecond;
    std::optional<Geography::Region> region = {};         // drawn if not given
    std::optional<Endpoint> endpoint = {};                // by the address plan if not given
    std::optional<crypto::Identity> identity = {};        // drawn if not given
    std::function<void(dht::NodeConfig&)> configure = {}; // what the fields above do not say
    std::shared_ptr<Actor> actor = {};                    // stands there in the place of a node
  };
  // A node of its own identity, drawn from the seed; it starts at once. Returns its index.
  size_t add(const NodeOptions& options);
  // The same identity and address, with nothing remembered.
  void restart(size_t index);

  size_t size() const { return hosts_.size(); }
  dht::Node& node(size_t index);
  const dht::Node& node(size_t index) const;
  // Where others reach it, unless it is behind a NAT.
  Endpoint endpoint(size_t index) const;
  dht::Contact contact(size_t index) const;
  const crypto::Identity& identity(size_t index) const;
  Geography::Region region(size_t index) const;
  // Of an undisturbed datagram and its answer.
  Duration rtt(size_t a, size_t b) const;

  // What is sent by or to a node that is down is lost; its timers stand still.
  void set_up(size_t index, bool up);
  bool is_up(size_t index) const;
  // A frozen node (as by SIGSTOP) does nothing until it thaws; what arrives meanwhile waits for it,
  // up to kFrozenDatagrams.
  void set_frozen(size_t index, bool frozen);
  static constexpr size_t kFrozenDatagrams = 256;
  // A passive node answers and does nothing of its own accord: its timers stand still.
  void set_passive(size_t index, bool passive);
  void set_faults(const Faults& faults) { faults_ = faults; }
  // True while no datagram may pass from the one to the other.
  using Partition = std::function<bool(size_t from, size_t to)>;
  void set_partition(Partition partition) { partition_ = std::move(partition); }

  // Fills the routing table of every node that is up with what upkeep converges to: from each part
  // of the key space the nearest, in round-trip time, of `choices` nodes. For studies of networks
  // too large to be grown in virtual time.
  // `progress` hears how many nodes are done.
  void settle(size_t choices = 5, const std::function<void(size_t)>& progress = nullptr);
  // Makes a node remember the round-trip times of its contacts, as if each had just answered it.
  void acquaint(size_t index);

  Time now() const { return now_; }
  WallMs wall(size_t index) const; // as its machine's clock has it
  // The network's time as the node has it, to be told in whatever is asked of the node now.
  WallMs network_wall(size_t index);
  void run_for(Duration duration) {
    run_until(now_ + duration, [] { return false; });
  }
  // Until `done()` or `limit`; returns done().
  bool run_until(Time limit, const std::function<bool()>& done);
  // Must follow every direct call to a node: sends what it left in its outbox.
  void collect(size_t index);
  // Delivers bytes as if they came from `from`.
  void inject(size_t to, const Endpoint& from, Buffer bytes);
  // Sees every datagram as it is delivered.
  std::function<void(const Endpoint& from, size_t to, ByteView bytes)> on_delivery;

  // Operations run to their end.
  dht::GetResult get(size_t index, const dht::Id& key, Duration limit = 30 * kSecond);
  dht::StoreResult store(size_t index, const dht::Record& record, Duration limit = 30 * kSecond);

  Rng& rng() { return rng_; }
  // A digest of every event so far.
  std::string log_hash() const { return log_.digest(); }
  uint64_t events() const { return log_.count(); }

private:
  struct Host;

  std::optional<size_t> host_at(const Endpoint& endpoint) const;
  Duration delay(size_t from, size_t to);
  void post(size_t from, dht::Datagram datagram);
  void send_all(size_t from, std::vector<dht::Datagram> datagrams);
  void schedule_timer(size_t index);
  void handle_timer(const Event& event);
  void handle_delivery(const Event& event);

  SeededRng rng_;
  Faults faults_;
  CipherKind cipher_;
  Partition partition_;
  Time now_ = 0;
  EventLog log_;
  EventQueue events_;
  dht::VerifiedRecords verified_;
  std::vector<std::unique_ptr<Host>> hosts_;
  std::unordered_map<Endpoint, size_t> unplanned_; // hosts at addresses of their own choice
};

} // namespace lah::sim
