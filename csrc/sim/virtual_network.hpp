// Many DHT nodes in one thread, in virtual time, over a network that loses, doubles and reorders.
// The nodes are the very objects the UDP driver runs. Same seed, same calls: same event log.
#pragma once

#include <queue>

#include "dht/node.hpp"

namespace lah::sim {

struct Faults {
  Duration latency_min = milliseconds(10); // one way, drawn anew for each datagram: order is lost
  Duration latency_max = milliseconds(60);
  double loss = 0;      // of datagrams
  double duplicate = 0; // of datagrams
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
  };
  // A node of its own identity, drawn from the seed; it starts at once. Returns its index.
  size_t add(const NodeOptions& options);
  // The same identity and address, with nothing remembered.
  void restart(size_t index);

  size_t size() const { return hosts_.size(); }
  dht::Node& node(size_t index);
  Endpoint endpoint(size_t index) const;
  const crypto::Identity& identity(size_t index) const;
  // What is sent by or to a node that is down is lost; its timers stand still.
  void set_up(size_t index, bool up);
  bool is_up(size_t index) const;
  void set_faults(const Faults& faults) { faults_ = faults; }
  // True while no datagram may pass between these two nodes.
  using Partition = std::function<bool(size_t from, size_t to)>;
  void set_partition(Partition partition) { partition_ = std::move(partition); }

  Time now() const { return now_; }
  WallMs wall(size_t index) const;
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
  // SHA-256 chained over every event so far.
  std::string log_hash() const { return to_hex(as_bytes(log_)); }
  uint64_t events() const { return event_count_; }

private:
  struct Host;
  struct Event {
    Time at;
    uint64_t order; // of creation, so that equal times have one order
    size_t to;
    bool timer;
    Endpoint from;
    Buffer bytes;
    bool operator>(const Event& other) const {
      return at != other.at ? at > other.at : order > other.order;
    }
  };

  bool chance(double probability);
  void post(size_t from, const dht::Datagram& datagram);
  void schedule_timer(size_t index);
  void handle(const Event& event);
  void log(const Event& event);

  SeededRng rng_;
  Faults faults_;
  CipherKind cipher_;
  Partition partition_;
  Time now_ = 0;
  uint64_t last_order_ = 0;
  uint64_t event_count_ = 0;
  crypto::Digest log_{};
  std::vector<std::unique_ptr<Host>> hosts_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
};

} // namespace lah::sim
