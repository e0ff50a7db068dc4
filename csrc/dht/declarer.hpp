#pragma once

#include <deque>

#include "dht/declaration.hpp"
#include "dht/node.hpp"

namespace lah::dht {

// Keeps a server's declarations alive: stores them, stores them again every period, takes back what
// is no longer served. A refresh goes straight to the nodes that held the record last time; every
// few periods, or when one of them failed or a nearer one is known, they are looked up again.
class Declarer final : public NodeTask {
public:
  struct Expert {
    ExpertUid uid;
    uint64_t schema_hash;
  };
  struct Served {
    std::vector<Expert> experts;
    // TCP. An empty list means: at the address our peers see us at.
    std::vector<Endpoint> addresses;
    uint16_t tcp_port = 0;
    uint64_t boot_id = 0;
    std::string version;
    Duration period = 20 * kSecond;
    uint64_t expiry_ms = 60'000;
    // Of the grid they belong to, if known: more than Limits::kGridExperts asks for level records.
    std::optional<uint64_t> grid_cells = std::nullopt;
  };
  // Copies of the record that has fewest, our own included; at least 1 unless there was no time.
  using Done = std::function<void(size_t replicas)>;

  explicit Declarer(Node& node);
  ~Declarer() override;
  Declarer(const Declarer&) = delete;
  Declarer& operator=(const Declarer&) = delete;

  // Replaces all that was declared before. An error if it cannot be encoded; then nothing changes.
  Result<size_t> declare(Time now, WallMs wall, Served served, Time deadline, Done done);
  // Replaces everything by tombstones.
  void undeclare(Time now, WallMs wall, Time deadline, Done done);

  void on_timer(Time now, WallMs wall) override;
  Time next_deadline() const override { return next_refresh_; }
  void on_joined(Time now, WallMs wall) override;

private:
  // Stores started together and reported together.
  struct Round {
    size_t open = 0;
    size_t fewest = SIZE_MAX;
    Time deadline = kNever;
    Done done;
  };
  struct Waiting {
    Id key;
    Buffer payload;
    uint64_t round;
    bool retried;
  };
  struct Holders {
    std::vector<Contact> contacts;
    Time looked_at;
    Time look_at; // again
  };
  // A record on its way straight to its holders.
  struct Refresh {
    Waiting store;
    Record record;
    size_t replicas = 0;
    bool failed = false;
  };

  void start_round(Time now, WallMs wall, std::map<Id, Buffer> payloads, Time deadline, Done done);
  void pump(Time now, WallMs wall);
  void on_stored(const Waiting& store, const StoreResult& result);
  void finish_one(uint64_t round, size_t replicas);

  bool can_refresh(Time now, const Id& key) const;
  void start_refreshes(WallMs wall);
  void send_refreshes(const Contact& to, const std::vector<size_t>& refreshes, Time deadline);
  void on_refreshed(const Contact& to, const std::vector<size_t>& refreshes, const Reply* reply);
  void finish_refreshes();

  std::vector<Endpoint> addresses(const Served& served) const;
  Result<std::map<Id, Buffer>> encode_all(const Served& served) const;
  std::map<Id, Buffer> with_server(std::map<Id, Buffer> payloads) const;
  uint64_t next_seq(WallMs wall);

  Node& node_;
  Served served_;
  std::vector<Endpoint> declared_addresses_;
  std::map<Id, Buffer> declared_; // without the server record
  std::map<Id, Holders> holders_;
  std::map<uint64_t, Round> rounds_;
  std::deque<Waiting> waiting_; // for a lookup of their replicas
  size_t in_flight_ = 0;
  std::deque<Waiting> refreshable_;
  std::vector<Refresh> refreshes_; // in flight
  size_t open_requests_ = 0;       // that carry them
  uint64_t last_round_ = 0;
  uint64_t last_seq_ = 0;
  Time next_refresh_ = kNever;
};

} // namespace lah::dht
