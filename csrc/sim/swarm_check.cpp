#include "sim/swarm_check.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "sim/random.hpp"

namespace lah::sim {
namespace {

constexpr Duration kGrowth = 60 * kSecond;   // all nodes have started
constexpr Duration kSettled = 90 * kSecond;  // and have found each other: from here on we ask
constexpr Duration kHealed = 60 * kSecond;   // after a partition ends
constexpr Duration kNewcomer = 30 * kSecond; // a node this young asks nothing yet
constexpr size_t kFirstNodes = 5;            // are behind no NAT: somebody must be found
constexpr size_t kNodesPerOwner = 10;
constexpr uint64_t kLifetimeMs = 60'000;
constexpr Duration kRefresh = 20 * kSecond;
constexpr Duration kAskEvery = milliseconds(200);
constexpr Duration kPatience = 10 * kSecond; // deadline of one operation
// Clocks are estimated from one's peers; a record may outlive its end by what that estimate errs.
constexpr uint64_t kClockErrorMs = 2'500;
constexpr size_t kOperationsMost = 64;
constexpr double kBytesPerSecondMost = 4'096;
constexpr size_t kViolationsKept = 8;

dht::Id key_of(size_t record) {
  const std::string name = "swarm-" + std::to_string(record);
  return dht::record_key("check", as_bytes(name));
}

class SwarmCheck {
public:
  explicit SwarmCheck(const SwarmOptions& options)
      : options_(options), rng_(options.seed),
        plan_(FaultPlan::draw(rng_, kSettled, options.duration)),
        net_(rng_.u64(), plan_.links, options.cipher) {}

  SwarmReport run(const std::function<void(Time)>& progress);

private:
  struct Peer {
    Time born = 0;
    bool afflicted = false; // frozen, deaf or mute: promises nothing for now
    bool hidden = false;    // behind a NAT
    bool beyond = false;    // on the far side of the partition
    std::vector<size_t> seeds;
  };
  struct Owned {
    size_t owner;
    Time stored_at = -1;  // the last store that some node took
    WallMs expiry_ms = 0; // of the last store that was begun, in true time
  };

  void birth();
  void death(size_t node);
  size_t any_alive();
  size_t any_public(); // one that anybody can join through
  bool well(size_t node) const;
  bool stranded(size_t node) const; // everybody it knows of died before they met
  void befall(const Fault& fault);
  void afflict(size_t node, const Fault& fault);
  void cut();
  void heal();
  void adopt(); // a node takes to owning a record
  void refresh(size_t record);
  void ask();
  void judge(size_t record, bool owed, const dht::GetResult& result);
  void watch();
  void plan_churn();
  void violation(const std::string& what);
  WallMs true_wall() const { return static_cast<WallMs>(net_.now() / kMillisecond); }
  bool whole() const { return net_.now() < plan_.partition.at || net_.now() >= healed_at_; }

  SwarmOptions options_;
  SeededRng rng_;
  FaultPlan plan_;
  VirtualNetwork net_;
  Script script_;
  SwarmReport report_;
  std::vector<Peer> peers_;
  std::vector<size_t> alive_;
  std::vector<Owned> records_;
  std::set<size_t> owners_; // alive
  std::set<size_t> deaf_;
  std::set<size_t> mute_;
  bool partitioned_ = false;
  Time healed_at_ = 0;
};

void SwarmCheck::violation(const std::string& what) {
  if (report_.violations.size() < kViolationsKept)
    report_.violations.push_back("at " + std::to_string(net_.now() / kMillisecond) +
                                 " ms: " + what);
}

// --- who lives -----------------------------------------------------------------------------------

size_t SwarmCheck::any_alive() {
  return alive_[rng_.below(alive_.size())];
}

size_t SwarmCheck::any_public() {
  size_t node = any_alive();
  while (peers_[node].hidden)
    node = any_alive();
  return node;
}

void SwarmCheck::birth() {
  VirtualNetwork::NodeOptions node;
  for (int i = 0; i < 3 && !alive_.empty(); ++i)
    node.seeds.push_back(any_public());
  if (chance(rng_, plan_.skewed))
    node.clock_skew_ms =
        static_cast<int64_t>(rng_.below(2 * static_cast<uint64_t>(plan_.skew_ms_most))) -
        plan_.skew_ms_most;
  if (alive_.size() >= kFirstNodes && chance(rng_, plan_.hidden)) {
    constexpr std::array kKinds{NatKind::kFullCone, NatKind::kAddressRestricted,
                                NatKind::kPortRestricted, NatKind::kSymmetric};
    node.nat = kKinds[rng_.below(kKinds.size())];
    node.nat_timeout = 30 * kSecond + static_cast<Duration>(rng_.below(90 * kSecond));
  }
  const size_t index = net_.add(node);
  peers_.push_back({net_.now(), false, node.nat != NatKind::kNone,
                    partitioned_ && chance(rng_, plan_.partition.share), node.seeds});
  alive_.push_back(index);
}

void SwarmCheck::death(size_t node) {
  net_.set_up(node, false);
  std::erase(alive_, node);
  if (owners_.erase(node) > 0)
    adopt(); // another takes its place; its records shall be forgotten
}

void SwarmCheck::plan_churn() {
  const double mean =
      static_cast<double>(plan_.half_life) / (std::log(2.0) * static_cast<double>(options_.nodes));
  const auto pause = static_cast<Duration>(-mean * std::log1p(-uniform(rng_)));
  script_.at(net_.now() + std::max<Duration>(pause, kMillisecond), [this] {
    death(any_alive());
    birth();
    plan_churn();
  });
}

// --- what befalls them ---------------------------------------------------------------------------

bool SwarmCheck::well(size_t node) const {
  return net_.is_up(node) && !peers_[node].afflicted &&
         net_.now() - peers_[node].born >= kNewcomer && !stranded(node);
}

bool SwarmCheck::stranded(size_t node) const {
  const std::vector<size_t>& seeds = peers_[node].seeds;
  return !seeds.empty() && !net_.node(node).ready() &&
         std::none_of(seeds.begin(), seeds.end(), [this](size_t seed) { return net_.is_up(seed); });
}

void SwarmCheck::befall(const Fault& fault) {
  const auto count = static_cast<size_t>(fault.share * static_cast<double>(alive_.size()));
  for (size_t i = 0; i < count; ++i) {
    const size_t node = any_alive();
    if (fault.kind == Fault::Kind::kDeath)
      death(node);
    else if (!peers_[node].afflicted)
      afflict(node, fault);
  }
}

void SwarmCheck::afflict(size_t node, const Fault& fault) {
  peers_[node].afflicted = true;
  if (fault.kind == Fault::Kind::kFreeze)
    net_.set_frozen(node, true);
  else
    (fault.kind == Fault::Kind::kDeaf ? deaf_ : mute_).insert(node);
  script_.at(net_.now() + fault.lasts, [this, node] {
    net_.set_frozen(node, false);
    deaf_.erase(node);
    mute_.erase(node);
  });
  script_.at(net_.now() + fault.lasts + kNewcomer,
             [this, node] { peers_[node].afflicted = false; });
}

void SwarmCheck::cut() {
  partitioned_ = true;
  for (const size_t node : alive_)
    peers_[node].beyond = chance(rng_, plan_.partition.share);
}

void SwarmCheck::heal() {
  partitioned_ = false;
}

// --- what they keep and ask ----------------------------------------------------------------------

void SwarmCheck::adopt() {
  size_t node = any_alive();
  while (!owners_.insert(node).second)
    node = any_alive();
  records_.push_back({node});
  const size_t record = records_.size() - 1;
  script_.every(kRefresh, net_.now() + static_cast<Duration>(rng_.below(kRefresh)),
                options_.duration, [this, record] { refresh(record); });
}

void SwarmCheck::refresh(size_t record) {
  const size_t owner = records_[record].owner;
  if (!well(owner))
    return;
  dht::Node& node = net_.node(owner);
  const WallMs wall = net_.network_wall(owner);
  const Buffer payload(24, static_cast<std::byte>(record));
  records_[record].expiry_ms = true_wall() + kLifetimeMs;
  node.start_store(net_.now(), wall,
                   node.sign(key_of(record), node.next_seq(), wall + kLifetimeMs, payload),
                   net_.now() + kPatience, [this, record](const dht::StoreResult& result) {
                     report_.refused += result.replicas == 0;
                     if (result.replicas > 0)
                       records_[record].stored_at = net_.now();
                   });
  net_.collect(owner);
}

void SwarmCheck::ask() {
  const size_t asker = any_alive();
  const size_t youngest = std::min(records_.size(), 2 * owners_.size()); // the others are long dead
  const size_t record = records_.size() - 1 - rng_.below(youngest);
  if (!well(asker))
    return;
  const Owned& owned = records_[record];
  // A record is owed while its owner lives and its last store is no older than two refreshes.
  const bool owed = whole() && well(owned.owner) && owned.stored_at >= 0 &&
                    net_.now() - owned.stored_at < 2 * kRefresh;
  net_.node(asker).start_get(
      net_.now(), net_.network_wall(asker), key_of(record), net_.now() + kPatience,
      [this, record, owed](const dht::GetResult& result) { judge(record, owed, result); });
  net_.collect(asker);
}

void SwarmCheck::judge(size_t record, bool owed, const dht::GetResult& result) {
  const Owned& owned = records_[record];
  const bool found = !result.records.empty();
  if (found && owned.stored_at >= 0 && true_wall() > owned.expiry_ms + kClockErrorMs)
    violation("record " + std::to_string(record) + " was served " +
              std::to_string(true_wall() - owned.expiry_ms) + " ms past its expiry");
  if (!owed || !whole() || !well(owned.owner))
    return;
  ++report_.asked;
  report_.found += found;
}

void SwarmCheck::watch() {
  for (const size_t node : alive_) {
    const dht::NodeStatus status = net_.node(node).status();
    report_.operations_most = std::max(report_.operations_most, status.operations);
    if (well(node) && whole() && !status.ready)
      violation("node " + std::to_string(node) + " has not joined within 30 s");
  }
}

// --- the run -------------------------------------------------------------------------------------

SwarmReport SwarmCheck::run(const std::function<void(Time)>& progress) {
  net_.set_partition([this](size_t from, size_t to) {
    return mute_.contains(from) || deaf_.contains(to) ||
           (partitioned_ && peers_[from].beyond != peers_[to].beyond);
  });
  const Fault& cutting = plan_.partition;
  healed_at_ = cutting.at + cutting.lasts + kHealed;
  for (size_t i = 0; i < options_.nodes; ++i)
    script_.at(static_cast<Time>(i) * (kGrowth / static_cast<Time>(options_.nodes)),
               [this] { birth(); });
  script_.at(kGrowth, [this] {
    for (size_t i = 0; i < options_.nodes / kNodesPerOwner; ++i)
      adopt();
  });
  script_.at(kSettled, [this] { plan_churn(); });
  for (const Fault& fault : plan_.faults)
    script_.at(fault.at, [this, fault] { befall(fault); });
  script_.at(cutting.at, [this] { cut(); });
  script_.at(cutting.at + cutting.lasts, [this] { heal(); });
  script_.every(kAskEvery, kSettled, options_.duration - kPatience, [this] { ask(); });
  script_.every(10 * kSecond, kSettled, options_.duration, [this] { watch(); });
  if (progress)
    script_.every(kSecond, 0, options_.duration, [&] { progress(net_.now()); });
  script_.play(net_, options_.duration);

  double bytes = 0;
  double seconds = 0;
  for (size_t i = 0; i < net_.size(); ++i)
    bytes += static_cast<double>(net_.node(i).status().bytes_out);
  seconds = static_cast<double>(options_.nodes) * static_cast<double>(options_.duration) / kSecond;
  report_.bytes_per_second = bytes / seconds;
  report_.events = net_.events();
  report_.log_hash = net_.log_hash();
  if (static_cast<double>(report_.found) < kFoundSeed * static_cast<double>(report_.asked))
    violation("found " + std::to_string(report_.found) + " of " + std::to_string(report_.asked));
  if (report_.operations_most > kOperationsMost)
    violation("a node had " + std::to_string(report_.operations_most) + " operations open");
  if (report_.bytes_per_second > kBytesPerSecondMost)
    violation("the mean node sent " + std::to_string(report_.bytes_per_second) + " B/s");
  return report_;
}

} // namespace

SwarmReport check_swarm(const SwarmOptions& options, const std::function<void(Time)>& progress) {
  return SwarmCheck(options).run(progress);
}

} // namespace lah::sim
