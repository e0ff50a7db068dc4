// Alive maps in swarms: how soon the living enter, the dead leave, and what it costs.
#include <gtest/gtest.h>

#include "dht/declarer.hpp"
#include "dht/expert_search.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

using sim::CipherKind;
using sim::Faults;
using sim::VirtualNetwork;

constexpr Faults kLossy{milliseconds(20), milliseconds(80), 0.10, 0.01};

// Servers that declare equal shares of a grid, and trainers that watch it.
class ExpertSwarm {
public:
  ExpertSwarm(VirtualNetwork& network, std::vector<int64_t> grid)
      : net(network), grid_(*Grid::make("ffn", grid)) {}

  // Experts `first` .. `first + count - 1` of the grid, by flat id.
  void declare(size_t node, uint32_t first, uint32_t count) {
    auto& declarer = declarers_[node];
    if (declarer == nullptr)
      declarer = std::make_unique<Declarer>(net.node(node));
    Declarer::Served served;
    for (uint32_t id = first; id < first + count; ++id)
      served.experts.push_back({*parse_uid(grid_.uid(id)), 1});
    served.addresses = {net.endpoint(node)};
    served.tcp_port = 8080;
    served.boot_id = 1;
    EXPECT_TRUE(declarer->declare(net.now(), net.wall(node), served, net.now() + 10 * kSecond,
                                  [](size_t) {}));
    net.collect(node);
  }

  void watch(size_t node) {
    auto& search = searches_[node];
    search = std::make_unique<ExpertSearch>(net.node(node));
    search->watch(net.now(), grid_, [this, node](auto map) { maps[node] = std::move(map); });
    net.collect(node);
  }

  size_t seen(size_t node) const {
    const auto map = maps.find(node);
    return map == maps.end() ? 0 : map->second->experts.size();
  }

  bool everybody_sees(size_t experts) const {
    return std::all_of(searches_.begin(), searches_.end(),
                       [&](const auto& search) { return seen(search.first) == experts; });
  }

  VirtualNetwork& net;
  std::map<size_t, std::shared_ptr<const AliveMap>> maps;

private:
  Grid grid_;
  std::map<size_t, std::unique_ptr<Declarer>> declarers_;
  std::map<size_t, std::unique_ptr<ExpertSearch>> searches_;
};

TEST(SimExperts, TheNewEnterWithinTwoSecondsAndTheDeadLeaveWithinAMinute) {
  VirtualNetwork net(61, kLossy, CipherKind::kHash);
  sim::grow(net, 60, 10 * kSecond);
  ExpertSwarm swarm(net, {16, 16});
  for (size_t trainer = 40; trainer < 50; ++trainer)
    swarm.watch(trainer);
  net.run_for(5 * kSecond);
  for (uint32_t server = 0; server < 16; ++server) {
    swarm.declare(1 + server, server * 16, 16);
    EXPECT_TRUE(net.run_until(net.now() + 2 * kSecond, [&] {
      return swarm.everybody_sees((server + 1) * 16);
    })) << server;
  }
  net.run_for(150 * kSecond); // through refreshes, renewals and looks for nearer nodes
  EXPECT_TRUE(swarm.everybody_sees(256));
  for (uint32_t server = 0; server < 4; ++server) {
    net.set_up(1 + server, false);
    net.run_for(60 * kSecond);
    EXPECT_TRUE(swarm.everybody_sees(256 - (server + 1) * 16)) << server;
  }
}

uint64_t traffic(const VirtualNetwork& net, size_t node) {
  const NodeStatus status = const_cast<VirtualNetwork&>(net).node(node).status();
  return status.bytes_in + status.bytes_out;
}

// Issue 6: client node 2 KB/s, server of 256 experts 10 KB/s, both directions together.
TEST(SimExperts, WatchingAndServingCostLittle) {
  VirtualNetwork net(62, {milliseconds(20), milliseconds(80), 0.02, 0.01}, CipherKind::kHash);
  sim::grow(net, 60, 10 * kSecond);
  const size_t client = net.add({.seeds = {0}, .client_mode = true});
  net.run_for(5 * kSecond);
  ExpertSwarm swarm(net, {16, 16});
  swarm.declare(1, 0, 256);
  for (uint32_t server = 0; server < 32; ++server)
    swarm.declare(2 + server, server * 8, 8); // replicas of it: 33 owners
  for (const size_t trainer : {client, size_t{50}, size_t{51}, size_t{52}})
    swarm.watch(trainer);
  net.run_for(30 * kSecond);
  ASSERT_TRUE(swarm.everybody_sees(256));
  const uint64_t client_before = traffic(net, client);
  const uint64_t server_before = traffic(net, 1);
  constexpr uint64_t kSeconds = 300;
  net.run_for(int64_t{kSeconds} * kSecond);
  const uint64_t client_rate = (traffic(net, client) - client_before) / kSeconds;
  const uint64_t server_rate = (traffic(net, 1) - server_before) / kSeconds;
  RecordProperty("client_bytes_per_second", static_cast<int>(client_rate));
  RecordProperty("server_bytes_per_second", static_cast<int>(server_rate));
  EXPECT_LE(client_rate, 2048U);
  EXPECT_LE(server_rate, 10'240U);
  EXPECT_TRUE(swarm.everybody_sees(256));
}

// A grid of 65,536 experts on 256 servers arrives completely, and soon.
TEST(SimExperts, TheLargestGridArrivesCompletely) {
  VirtualNetwork net(63, {milliseconds(20), milliseconds(60), 0.02}, CipherKind::kHash);
  for (size_t i = 0; i < 300; ++i)
    net.add({});
  net.settle();
  ExpertSwarm swarm(net, {256, 256});
  for (uint32_t server = 0; server < 256; ++server) {
    swarm.declare(server, server * 256, 256);
    net.run_for(milliseconds(20));
  }
  net.run_for(5 * kSecond);
  const Time began = net.now();
  swarm.watch(280);
  ASSERT_TRUE(net.run_until(net.now() + 10 * kSecond, [&] { return swarm.seen(280) == 65'536; }))
      << swarm.seen(280);
  EXPECT_LT(net.now() - began, 3 * kSecond);
}

// What a joined node that knows nothing of the experts needs for its first map, in round trips.
TEST(SimExperts, AColdMapTakesHardlyLongerThanAGet) {
  const Duration rtt = milliseconds(100);
  VirtualNetwork net(64, Faults::constant_rtt(rtt), CipherKind::kHash);
  for (size_t i = 0; i < 1000; ++i)
    net.add({});
  net.settle();
  ExpertSwarm swarm(net, {16, 16});
  for (uint32_t server = 0; server < 16; ++server)
    swarm.declare(server, server * 16, 16);
  net.run_for(5 * kSecond);
  std::vector<Duration> times;
  for (size_t trainer = 100; trainer < 121; ++trainer) {
    const Time began = net.now();
    swarm.watch(trainer);
    ASSERT_TRUE(net.run_until(net.now() + 5 * kSecond, [&] { return swarm.seen(trainer) == 256; }));
    times.push_back(net.now() - began);
  }
  std::sort(times.begin(), times.end());
  RecordProperty("median_ms", static_cast<int>(times[times.size() / 2] / kMillisecond));
  EXPECT_LE(times[times.size() / 2], rtt * 5 / 2);
  EXPECT_LE(times.back(), 3 * rtt);
}

} // namespace
} // namespace lah::dht
