#pragma once

#include "dht/level_declaration.hpp"
#include "dht/node.hpp"

namespace lah::dht {

// The level records a trainer has read. Tuples that are used stay fresh in the background; a tuple
// that held nothing is asked for again after kAbsent, and nobody but this node is told so; that of
// a whole prefix after kAbsentPrefix, so that its first experts are seen soon.
class LevelCache final : public NodeTask {
public:
  struct Held {
    uint64_t seq = 0;
    WallMs expiry_ms = 0;
    LevelRecord level = {}; // no groups if taken back, or malformed
  };
  using Records = std::map<std::pair<PublicKey, size_t>, Held>; // by owner and index
  // A tuple was read, or could not be.
  using OnRead = std::function<void(const LevelName& name, bool read)>;

  LevelCache(Node& node, OnRead on_read);
  ~LevelCache() override;
  LevelCache(const LevelCache&) = delete;
  LevelCache& operator=(const LevelCache&) = delete;

  // Null if it has to be read first. Some of the records may have expired. Valid until the next
  // event of the node.
  const Records* find(const LevelName& name);
  // Asks the network, unless it is being asked.
  void read(Time now, WallMs wall, const LevelName& name);
  bool reading(const LevelName& name) const;
  size_t reads() const { return reads_; }

  void on_timer(Time now, WallMs wall) override;
  Time next_deadline() const override { return entries_.empty() ? kNever : next_tick_; }

  static constexpr Duration kAbsent = 5 * kSecond;
  static constexpr Duration kAbsentPrefix = kSecond;
  static constexpr Duration kRefresh = 20 * kSecond; // as often as owners declare
  static constexpr Duration kHot = 60 * kSecond;     // a tuple unused for longer is let go

private:
  struct Entry {
    Records records;
    Time read_at = kNever; // kNever before the first time
    Time used_at = 0;
    size_t asked = 0; // indices 0..asked-1, in this reading
    size_t open = 0;
    bool failed = false; // some index was not read to its end
  };

  void ask(Time now, WallMs wall, const LevelName& name, Entry& entry, size_t indices);
  void on_records(const LevelName& name, size_t index, const GetResult& result);
  static bool has_live(const Entry& entry, WallMs wall);
  void make_room();

  Node& node_;
  OnRead on_read_;
  std::map<LevelName, Entry> entries_;
  size_t reads_ = 0;
  Time next_tick_ = 0;
};

} // namespace lah::dht
