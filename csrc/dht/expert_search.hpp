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

  // Keeps the grid's alive map fresh, asking every `period`. Watching twice keeps the shorter
  // period.
  void watch(Time now, const Grid& grid, Duration period, OnMap on_map);
  void unwatch(const Grid& grid);

  // Leaves an owner out until `until`, or until it declares another boot id than `boot_id`.
  void suspect(Time now, const PublicKey& owner, std::optional<uint64_t> boot_id, Time until);
  void forgive(Time now, const PublicKey& owner);
  bool is_suspect(const PublicKey& owner, uint64_t boot_id) const;

  // Who serves each uid; absent ones are null. Declarations read less than kFresh ago are not asked
  // for again.
  using FindDone = std::function<void(std::vector<std::optional<Found>>)>;
  void find(Time now, WallMs wall, std::vector<ExpertUid> uids, Time deadline, FindDone done);
  // For each uid prefix ("ffn", "ffn.3", "ffn.3.7"): is any expert alive at or below it?
  using ActiveDone = std::function<void(std::vector<bool>)>;
  void active(Time now, WallMs wall, std::vector<ExpertUid> prefixes, Time deadline,
              ActiveDone done);

  void on_timer(Time now, WallMs wall) override;
  Time next_deadline() const override;
  void on_joined(Time now, WallMs wall) override;

  static constexpr Duration kFresh = kSecond;

private:
  struct Watch {
    Duration period;
    OnMap on_map;
    std::shared_ptr<const AliveMap> map;
    Time rebuild_at;
  };
  struct Reader {
    std::unique_ptr<PrefixReader> prefix;
    Duration period = kNever; // of the most eager watch
    Time next_refresh = kNever;
    Time used_at = 0;
  };
  struct Suspicion {
    std::optional<uint64_t> boot_id;
    Time until;
  };

  Reader& reader(Time now, const std::string& prefix);
  void refresh(Time now, WallMs wall, const std::string& prefix);
  void rebuild_prefix(const std::string& prefix);
  void rebuild(const Grid& grid, Watch& watch);
  void rebuild_all();
  void refresh_all(Time now, WallMs wall, const std::vector<ExpertUid>& uids, Time deadline,
                   std::function<void()> done);
  std::optional<Found> find_one(const ExpertUid& uid) const;
  bool is_active(const ExpertUid& prefix) const;

  Node& node_;
  ServerBook servers_;
  std::map<std::string, Reader> readers_;
  std::map<Grid, Watch> watches_;
  std::map<PublicKey, Suspicion> suspects_;
};

} // namespace lah::dht
