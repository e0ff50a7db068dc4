// Finding experts: alive maps kept fresh for trainers in the background, and lookups by uid.
#pragma once

#include <memory>

#include "dht/alive_map.hpp"

namespace lah::dht {

class ExpertSearch final : public NodeTask {
public:
  // Called for the first map of a grid, empty or not, and for every changed one.
  using OnMap = std::function<void(std::shared_ptr<const AliveMap>)>;
  struct Found {
    std::string uid;
    PublicKey owner;
    Endpoint endpoint; // TCP
    uint64_t boot_id;
  };

  explicit ExpertSearch(Node& node);
  ~ExpertSearch() override;
  ExpertSearch(const ExpertSearch&) = delete;
  ExpertSearch& operator=(const ExpertSearch&) = delete;

  // Keeps the grid's alive map fresh: what changes is pushed to this node.
  void watch(Time now, const Grid& grid, OnMap on_map);
  void unwatch(const Grid& grid);

  // Leaves an owner out until `until`, or until it declares another boot id than `boot_id`.
  void suspect(Time now, const PublicKey& owner, std::optional<uint64_t> boot_id, Time until);
  void forgive(Time now, const PublicKey& owner);
  bool is_suspect(const PublicKey& owner, uint64_t boot_id) const;

  // Who serves each uid; absent ones are null. Under watched prefixes only those that the map lacks
  // are asked for, and declarations read less than kFresh ago are not asked for again.
  using FindDone = std::function<void(std::vector<std::optional<Found>>)>;
  void find(Time now, WallMs wall, std::vector<ExpertUid> uids, Time deadline, FindDone done);
  // For each uid prefix ("ffn", "ffn.3", "ffn.3.7"): is any expert alive at or below it?
  using ActiveDone = std::function<void(std::vector<bool>)>;
  void active(Time now, WallMs wall, std::vector<ExpertUid> prefixes, Time deadline,
              ActiveDone done);

  void on_timer(Time now, WallMs wall) override;
  Time next_deadline() const override;

  static constexpr Duration kFresh = kSecond;

private:
  struct Watch {
    OnMap on_map;
    std::shared_ptr<const AliveMap> map = nullptr;
    Time built_at = 0;
    Time rebuild_at = kNever;
  };
  struct Reader {
    std::unique_ptr<PrefixReader> prefix;
    Time used_at = 0;
  };
  struct Suspicion {
    std::optional<uint64_t> boot_id;
    Time until;
  };

  Reader& reader(Time now, const std::string& prefix);
  void on_change(const std::string& prefix);
  bool knows(const ExpertUid& uid, bool whole) const;
  void rebuild(const Grid& grid, Watch& watch);
  void rebuild_all();
  // `whole`: the uids name experts, not what lies below them.
  void refresh_all(Time now, const std::vector<ExpertUid>& uids, bool whole, Time deadline,
                   std::function<void()> done);
  std::optional<Found> find_one(const ExpertUid& uid) const;
  bool is_active(const ExpertUid& prefix) const;

  Node& node_;
  std::map<std::string, Reader> readers_;
  std::map<Grid, Watch> watches_;
  std::map<PublicKey, Suspicion> suspects_;
};

} // namespace lah::dht
