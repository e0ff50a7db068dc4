#include "sim/lookup_study.hpp"

#include <algorithm>

namespace lah::sim {
namespace {

constexpr size_t kAskersMost = 100;
constexpr Duration kPatience = 60 * kSecond;
constexpr Duration kLateAnswers = 5 * kSecond; // stores go on for them
constexpr uint64_t kLifetimeMs = 600'000;

class LookupStudy {
public:
  LookupStudy(const StudyOptions& options, const Progress& progress)
      : options_(options), progress_(progress),
        net_(options.seed, options.links, CipherKind::kHash) {}

  StudyResult run();

private:
  // One operation of every asker at once, until all have ended. `begin(asker, wave, done)`.
  using Done = std::function<void()>;
  using Begin = std::function<void(size_t asker, size_t wave, Done done)>;
  std::vector<Duration> in_waves(const std::string& what, size_t count, const Begin& begin);

  void populate();
  void store_records();
  void get_records();
  void find_closest();
  double true_replicas(const dht::Id& key);
  double datagrams() const; // sent by the askers
  dht::Id random_key();
  void say(const std::string& what, size_t done, size_t all) const {
    if (progress_)
      progress_(what, done, all);
  }

  StudyOptions options_;
  Progress progress_;
  VirtualNetwork net_;
  std::vector<size_t> askers_; // alive and active; all others only answer
  std::vector<dht::Id> keys_;  // of the records stored, at least one for every wave of gets
  StudyResult result_;
};

void LookupStudy::populate() {
  VirtualNetwork::NodeOptions node;
  node.configure = [this](dht::NodeConfig& config) { config.table_size = options_.table_size; };
  for (size_t i = 0; i < options_.nodes; ++i) {
    if (i % 1000 == 0)
      say("nodes", i, options_.nodes);
    net_.set_passive(net_.add(node), true);
  }
  net_.settle(options_.choices, [this](size_t done) { say("tables", done, options_.nodes); });
  double contacts = 0;
  for (size_t i = 0; i < options_.nodes; ++i)
    contacts += static_cast<double>(net_.node(i).table().size());
  result_.table_contacts = contacts / static_cast<double>(options_.nodes);

  auto dying = static_cast<size_t>(options_.dead * static_cast<double>(options_.nodes));
  while (dying > 0) {
    const size_t node = net_.rng().below(options_.nodes);
    dying -= net_.is_up(node);
    net_.set_up(node, false);
  }
  for (size_t node = 0; node < options_.nodes && askers_.size() < kAskersMost; ++node)
    if (net_.is_up(node)) {
      net_.acquaint(node);
      net_.set_passive(node, false);
      askers_.push_back(node);
    }
}

std::vector<Duration> LookupStudy::in_waves(const std::string& what, size_t count,
                                            const Begin& begin) {
  std::vector<Duration> durations;
  for (size_t wave = 0; durations.size() < count; ++wave) {
    say(what, durations.size(), count);
    const size_t first = durations.size();
    const size_t width = std::min(askers_.size(), count - first);
    size_t open = width;
    durations.resize(first + width);
    const Time began = net_.now();
    for (size_t i = 0; i < width; ++i) {
      begin(askers_[i], wave, [&, i] {
        durations[first + i] = net_.now() - began;
        --open;
      });
      net_.collect(askers_[i]);
    }
    net_.run_until(began + kPatience + kSecond, [&] { return open == 0; });
  }
  return durations;
}

dht::Id LookupStudy::random_key() {
  std::array<uint8_t, 32> bytes{};
  net_.rng().fill(std::as_writable_bytes(std::span(bytes)));
  return dht::Id::from_bytes(bytes);
}

double LookupStudy::datagrams() const {
  uint64_t packets = 0;
  for (const size_t asker : askers_)
    packets += net_.node(asker).status().packets_out;
  return static_cast<double>(packets);
}

void LookupStudy::store_records() {
  const double before = datagrams();
  const Buffer payload(100, std::byte{1});
  result_.stores = in_waves("stores", options_.lookups, [&](size_t asker, size_t, Done done) {
    dht::Node& node = net_.node(asker);
    const WallMs wall = net_.network_wall(asker);
    keys_.push_back(random_key());
    node.start_store(net_.now(), wall, node.sign(keys_.back(), wall, wall + kLifetimeMs, payload),
                     net_.now() + kPatience, [done](const dht::StoreResult&) { done(); });
  });
  net_.run_for(kLateAnswers);
  result_.store_datagrams = (datagrams() - before) / static_cast<double>(options_.lookups);
  const size_t checked = std::min<size_t>(keys_.size(), 50);
  for (size_t i = 0; i < checked; ++i)
    result_.true_replicas += true_replicas(keys_[i]) / static_cast<double>(checked);
}

double LookupStudy::true_replicas(const dht::Id& key) {
  std::vector<std::pair<dht::Id, size_t>> nodes;
  for (size_t i = 0; i < options_.nodes; ++i)
    if (net_.is_up(i))
      nodes.emplace_back(dht::distance(net_.node(i).id(), key), i);
  const size_t count = std::min(nodes.size(), Limits::kReplicas);
  std::partial_sort(nodes.begin(), nodes.begin() + static_cast<std::ptrdiff_t>(count), nodes.end());
  size_t holding = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t node = nodes[i].second;
    holding += !net_.node(node).storage().get(key, net_.network_wall(node)).empty();
  }
  return static_cast<double>(holding) / static_cast<double>(count);
}

void LookupStudy::get_records() {
  const double before = datagrams();
  size_t next = 0;
  result_.gets = in_waves("gets", options_.lookups, [&](size_t asker, size_t, Done done) {
    // Neither of its own nor one that this node happens to hold, and never the same one again.
    dht::Node& node = net_.node(asker);
    next += 1;
    while (!node.storage().get(keys_[next % keys_.size()], net_.network_wall(asker)).empty())
      ++next;
    node.start_get(
        net_.now(), net_.network_wall(asker), keys_[next % keys_.size()], net_.now() + kPatience,
        [this, done](const dht::GetResult& got) {
          result_.found += !got.records.empty();
          done();
        },
        options_.consistency);
  });
  result_.get_datagrams = (datagrams() - before) / static_cast<double>(options_.lookups);
}

void LookupStudy::find_closest() {
  result_.closests = in_waves("closest", options_.lookups, [&](size_t asker, size_t, Done done) {
    net_.node(asker).start_lookup(net_.now(), net_.network_wall(asker), random_key(),
                                  net_.now() + kPatience, [done](size_t) { done(); });
  });
}

StudyResult LookupStudy::run() {
  populate();
  store_records();
  get_records();
  find_closest();
  result_.events = net_.events();
  result_.log_hash = net_.log_hash();
  return result_;
}

} // namespace

StudyResult study_lookups(const StudyOptions& options, const Progress& progress) {
  return LookupStudy(options, progress).run();
}

} // namespace lah::sim
