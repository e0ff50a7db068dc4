// Servers declare, trainers look on: declarations and alive maps in simulated networks.
#include <gtest/gtest.h>

#include "dht/declarer.hpp"
#include "dht/expert_search.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

using sim::CipherKind;
using sim::Faults;
using sim::VirtualNetwork;

ExpertUid uid(std::string_view text) {
  return *parse_uid(text);
}

// Nodes of which some declare and one looks on.
struct ExpertsTest : testing::Test {
  ExpertsTest()
      : net(31, Faults{milliseconds(5), milliseconds(30), 0.05, 0.01}, CipherKind::kHash) {
    sim::grow(net, 8, 5 * kSecond);
    for (size_t i = 0; i < net.size(); ++i)
      declarers.push_back(std::make_unique<Declarer>(net.node(i)));
    search = std::make_unique<ExpertSearch>(net.node(7));
  }

  size_t declare(size_t node, const std::vector<std::string>& uids, uint64_t schema = 1,
                 uint64_t boot_id = 1) {
    Declarer::Served served;
    for (const std::string& text : uids)
      served.experts.push_back({uid(text), schema});
    served.addresses = {net.endpoint(node)};
    served.tcp_port = static_cast<uint16_t>(8000 + node);
    served.boot_id = boot_id;
    std::optional<size_t> replicas;
    EXPECT_TRUE(declarers[node]->declare(net.now(), net.wall(node), served,
                                         net.now() + 10 * kSecond,
                                         [&](size_t count) { replicas = count; }));
    net.collect(node);
    EXPECT_TRUE(net.run_until(net.now() + 12 * kSecond, [&] { return replicas.has_value(); }));
    return replicas.value_or(0);
  }

  void undeclare(size_t node) {
    bool done = false;
    declarers[node]->undeclare(net.now(), net.wall(node), net.now() + 10 * kSecond,
                               [&](size_t) { done = true; });
    net.collect(node);
    EXPECT_TRUE(net.run_until(net.now() + 12 * kSecond, [&] { return done; }));
  }

  void watch(std::string_view prefix, const std::vector<int64_t>& size) {
    search->watch(net.now(), *Grid::make(prefix, size),
                  [this](auto changed) { map = std::move(changed); });
    net.collect(7);
    EXPECT_TRUE(net.run_until(net.now() + 10 * kSecond, [&] { return map != nullptr; }));
  }

  bool wait_alive(size_t count, Duration limit = 10 * kSecond) {
    return net.run_until(net.now() + limit, [&] { return map && map->experts.size() == count; });
  }

  uint16_t port_of(size_t index) {
    return map->servers.at(map->experts.at(index).server).endpoint.port;
  }

  static std::vector<std::string> grid_uids(const std::string& prefix, uint32_t rows,
                                            uint32_t columns) {
    std::vector<std::string> uids;
    for (uint32_t i = 0; i < rows * columns; ++i)
      uids.push_back(prefix + "." + std::to_string(i / columns) + "." +
                     std::to_string(i % columns));
    return uids;
  }

  VirtualNetwork net;
  std::vector<std::unique_ptr<Declarer>> declarers;
  std::unique_ptr<ExpertSearch> search;
  std::shared_ptr<const AliveMap> map;
};

// learning-at-home §6A-26.
TEST_F(ExpertsTest, SixtyFourExpertsDeclaredInOneCallAreAllSeen) {
  EXPECT_GE(declare(1, grid_uids("ffn", 8, 8)), 4U);
  watch("ffn", {8, 8});
  EXPECT_TRUE(wait_alive(64));
  for (uint32_t i = 0; i < 64; ++i)
    EXPECT_EQ(map->experts[i].flat_id, i);
  EXPECT_EQ(map->servers.at(0).owner, net.identity(1).public_key());
  EXPECT_EQ(port_of(0), 8001);
}

TEST_F(ExpertsTest, FourThousandExpertsAreSeenToo) {
  declare(1, grid_uids("big", 64, 64));
  watch("big", {64, 64});
  EXPECT_TRUE(wait_alive(4096));
}

TEST_F(ExpertsTest, ADeadServerVanishesWithinItsExpiry) {
  declare(1, grid_uids("ffn", 2, 2));
  declare(2, {"ffn.3.3"});
  watch("ffn", {4, 4});
  ASSERT_TRUE(wait_alive(5));
  net.run_for(100 * kSecond); // refreshed meanwhile, again and again
  EXPECT_EQ(map->experts.size(), 5U);
  const uint64_t version = map->version;
  net.set_up(1, false);
  EXPECT_TRUE(wait_alive(1, 61 * kSecond));
  EXPECT_GT(map->version, version);
  EXPECT_EQ(port_of(0), 8002);
}

TEST_F(ExpertsTest, UndeclaredExpertsVanishAtTheNextRefresh) {
  declare(1, grid_uids("ffn", 2, 2));
  watch("ffn", {4, 4});
  ASSERT_TRUE(wait_alive(4));
  undeclare(1);
  EXPECT_TRUE(wait_alive(0, 5 * kSecond));
}

TEST_F(ExpertsTest, DeclaringAgainReplacesEverything) {
  declare(1, grid_uids("big", 64, 64));
  declare(1, {"big.0.1", "other.5"});
  watch("big", {64, 64});
  EXPECT_TRUE(wait_alive(1));
  EXPECT_EQ(map->experts[0].flat_id, 1U);
}

TEST_F(ExpertsTest, SuspectsAreReplacedByTheNextBestAndComeBack) {
  declare(1, {"ffn.0"});
  net.run_for(kSecond);
  declare(2, {"ffn.0"});
  watch("ffn", {4});
  ASSERT_TRUE(wait_alive(1));
  const Time soon = net.now() + 10 * kSecond;
  const PublicKey first = map->servers.at(map->experts[0].server).owner;
  search->suspect(net.now(), first, std::nullopt, soon);
  ASSERT_EQ(map->experts.size(), 1U);
  EXPECT_NE(map->servers.at(map->experts[0].server).owner, first);
  search->suspect(net.now(), map->servers.at(map->experts[0].server).owner, std::nullopt, soon);
  EXPECT_EQ(map->experts.size(), 0U);
  net.collect(7);
  net.run_for(11 * kSecond);
  EXPECT_EQ(map->experts.size(), 1U);

  search->suspect(net.now(), first, std::nullopt, kNever);
  EXPECT_NE(map->servers.at(map->experts.at(0).server).owner, first);
  search->forgive(net.now(), first);
  EXPECT_EQ(map->experts.size(), 1U);
}

TEST_F(ExpertsTest, TheChoiceAmongReplicasLastsAndTheyShareTheWork) {
  for (const size_t node : {1U, 2U, 3U})
    declare(node, grid_uids("ffn", 8, 8));
  declare(4, {"ffn.0.0"}, 9); // another schema is no replica
  watch("ffn", {8, 8});
  ASSERT_TRUE(wait_alive(64));
  EXPECT_TRUE(net.run_until(net.now() + 10 * kSecond,
                            [&] { return map->experts[63].replicas.size() == 2; }));
  std::map<uint32_t, size_t> chosen;
  for (const AliveMap::Expert& expert : map->experts) {
    ++chosen[expert.server];
    EXPECT_EQ((std::set{expert.server, expert.replicas.at(0), expert.replicas.at(1)}.size()), 3U);
  }
  EXPECT_EQ(chosen.size(), 3U);
  for (const auto& [server, experts] : chosen)
    EXPECT_GE(experts, 5U);
  const uint64_t version = map->version;
  net.run_for(100 * kSecond); // all declare again and again, with ever newer records
  EXPECT_EQ(map->version, version);
}

TEST_F(ExpertsTest, ReplicasAreBounded) {
  while (declarers.size() < Limits::kExpertReplicas + 4) {
    const size_t node = net.add({.seeds = {0}});
    declarers.push_back(std::make_unique<Declarer>(net.node(node)));
  }
  net.run_for(5 * kSecond);
  for (size_t node = 0; node < net.size(); ++node)
    declare(node, {"ffn.0"});
  watch("ffn", {4});
  ASSERT_TRUE(wait_alive(1));
  net.run_for(5 * kSecond);
  EXPECT_EQ(map->servers.size(), net.size());
  EXPECT_EQ(map->experts[0].replicas.size(), Limits::kExpertReplicas);
}

TEST(DhtPreference, DiffersBetweenTrainers) {
  const Coordinates coordinates{3, 5};
  const PublicKey a{1}, b{2};
  size_t first = 0;
  for (uint8_t trainer = 0; trainer < 100; ++trainer) {
    const Id id = record_key("trainer", as_bytes(std::string(1, static_cast<char>(trainer))));
    first += Preference(id, a).rank(coordinates) < Preference(id, b).rank(coordinates);
  }
  EXPECT_GT(first, 30U);
  EXPECT_LT(first, 70U);
}

TEST_F(ExpertsTest, ARestartedServerIsNoSuspectAndItsNewAddressIsUsed) {
  declare(1, {"ffn.0"}, 1, 100);
  watch("ffn", {4});
  ASSERT_TRUE(wait_alive(1));
  search->suspect(net.now(), net.identity(1).public_key(), 100, kNever);
  EXPECT_TRUE(map->experts.empty());
  net.collect(7);
  Declarer::Served served{
      {{uid("ffn.0"), 1}}, {net.endpoint(1)}, 9999, 101, "", 20 * kSecond, 60'000};
  EXPECT_TRUE(declarers[1]->declare(net.now(), net.wall(1), served, kNever, nullptr));
  net.collect(1);
  EXPECT_TRUE(wait_alive(1, 5 * kSecond));
  EXPECT_EQ(port_of(0), 9999);
  EXPECT_EQ(map->servers.at(0).boot_id, 101U);
}

TEST_F(ExpertsTest, OnlyWhatLiesInTheGridCounts) {
  declare(1, {"ffn.0.0", "ffn.9.0", "ffn.1", "ffn.1.1.1", "ffn", "other.0.0"});
  watch("ffn", {4, 4});
  EXPECT_TRUE(wait_alive(1));
  net.run_for(3 * kSecond);
  EXPECT_EQ(map->experts.size(), 1U);
}

TEST_F(ExpertsTest, APrefixThatEndsInANumberWorks) {
  declare(1, {"layer.0.3", "layer.1.2"});
  watch("layer.1", {4});
  EXPECT_TRUE(wait_alive(1));
  EXPECT_EQ(map->experts[0].flat_id, 2U);
}

TEST_F(ExpertsTest, TheSchemaOfTheMajorityWins) {
  declare(1, {"ffn.0", "ffn.1", "ffn.2"}, 7);
  declare(2, {"ffn.3"}, 8);
  watch("ffn", {4});
  EXPECT_TRUE(wait_alive(3));
  EXPECT_EQ(map->schema_hash, 7U);
  EXPECT_EQ(map->other_schemas, 1U);
}

TEST_F(ExpertsTest, LookupsByUidAndPrefix) {
  declare(1, {"ffn.0.3", "ffn.2.1", "expert0"});
  std::optional<std::vector<std::optional<ExpertSearch::Found>>> found;
  search->find(net.now(), net.wall(7), {uid("ffn.2.1"), uid("ffn.2.2"), uid("expert0"), uid("x")},
               net.now() + 10 * kSecond, [&](auto result) { found = std::move(result); });
  net.collect(7);
  ASSERT_TRUE(net.run_until(net.now() + 11 * kSecond, [&] { return found.has_value(); }));
  ASSERT_TRUE(found->at(0) && found->at(2));
  EXPECT_EQ(found->at(0)->endpoint.port, 8001);
  EXPECT_EQ(found->at(2)->owner, net.identity(1).public_key());
  EXPECT_FALSE(found->at(1) || found->at(3));

  std::optional<std::vector<bool>> active;
  search->active(net.now(), net.wall(7),
                 {uid("ffn"), uid("ffn.2"), uid("ffn.2.1"), uid("ffn.1"), uid("ffn.2.1.0"),
                  uid("x"), uid("expert0")},
                 net.now() + 10 * kSecond, [&](auto result) { active = std::move(result); });
  net.collect(7);
  ASSERT_TRUE(net.run_until(net.now() + 11 * kSecond, [&] { return active.has_value(); }));
  EXPECT_EQ(*active, (std::vector<bool>{true, true, true, false, false, false, true}));
}

TEST_F(ExpertsTest, AStrangersRecordUnderAServersNameIsIgnored) {
  declare(1, {"ffn.0"});
  const ServerRecord lie{{*Endpoint::parse("203.0.113.1", 1)}, 1, ""};
  const Record record =
      net.node(3).sign(server_key(net.identity(1).public_key()), net.wall(3) + 1000,
                       net.wall(3) + 60'000, encode_server(lie));
  EXPECT_GE(net.store(3, record).replicas, 1U);
  watch("ffn", {4});
  ASSERT_TRUE(wait_alive(1));
  EXPECT_EQ(port_of(0), 8001);
}

TEST_F(ExpertsTest, AClockSetBackDoesNotMuteAServer) {
  const size_t server = net.add({.seeds = {0}, .clock_skew_ms = 100'000});
  net.run_for(5 * kSecond);
  declarers.push_back(std::make_unique<Declarer>(net.node(server)));
  declare(server, {"ffn.0"});
  const Record held =
      net.node(server).storage().get(declaration_key("ffn", 0), net.wall(server)).at(0);
  declarers.pop_back();
  net.restart(server); // with a clock that is right again: its seq would be lower
  net.run_for(5 * kSecond);
  declarers.push_back(std::make_unique<Declarer>(net.node(server)));
  Declarer::Served served{
      {{uid("ffn.1"), 1}}, {net.endpoint(server)}, 8008, 2, "", 20 * kSecond, 60'000};
  std::optional<size_t> replicas;
  EXPECT_TRUE(declarers.back()->declare(net.now(), net.wall(server) - 100'000, served,
                                        net.now() + 10 * kSecond,
                                        [&](size_t count) { replicas = count; }));
  net.collect(server);
  ASSERT_TRUE(net.run_until(net.now() + 12 * kSecond, [&] { return replicas.has_value(); }));
  EXPECT_GE(*replicas, 4U);
  EXPECT_GT(net.get(0, held.key).records.at(0).seq, held.seq);
}

} // namespace
} // namespace lah::dht
