// Networks that one attacker filled with identities.
#include "sim/sybil.hpp"

#include <gtest/gtest.h>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

TEST(SimSybil, SybilsEnterTablesTakeRecordsAndKeepNone) {
  VirtualNetwork net(41, Faults::constant_rtt(milliseconds(40)), CipherKind::kHash);
  grow(net, 100, 10 * kSecond);
  const dht::Id key = named_key("a");
  const std::vector<size_t> sybils =
      add_sybils(net, {.count = 40, .subnets = 20, .near = key, .grinding = 16});
  net.run_for(120 * kSecond);
  size_t met = 0;
  for (const size_t sybil : sybils)
    met += net.node(7).table().contains(net.node(sybil).id());
  EXPECT_GT(met, 5U);

  const dht::Record record = record_of(net, 7, "a", "value");
  const size_t replicas = net.store(7, record).replicas;
  size_t holders = 0;
  for (size_t i = 0; i < 100; ++i)
    holders += i != 7 && !net.node(i).storage().get(key, net.wall(i)).empty();
  EXPECT_LT(holders, replicas);
}

TEST(SimSybil, SybilsAreDeterministicToo) {
  const auto hash = [] {
    VirtualNetwork net(42, {}, CipherKind::kHash);
    grow(net, 20, 5 * kSecond);
    add_sybils(net, {.count = 10, .subnets = 1, .near = named_key("a"), .grinding = 8});
    net.run_for(20 * kSecond);
    return net.log_hash();
  };
  EXPECT_EQ(hash(), hash());
}

} // namespace
} // namespace lah::sim
