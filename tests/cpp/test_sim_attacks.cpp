// Swarms under attack: identities by the dozen in one subnet, floods of fresh keys, replays.
#include <gtest/gtest.h>

#include "sim/address_plan.hpp"
#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

// As many identities as there are honest nodes, all in one /24: their contacts reach nobody's
// results in numbers, so records stay where honest nodes find them.
TEST(SimAttack, ACrowdInOneSubnetHidesNoRecord) {
  VirtualNetwork net(41, {}, CipherKind::kHash);
  constexpr size_t kHonest = 50;
  grow(net, kHonest, 10 * kSecond);
  std::vector<dht::Record> records;
  for (size_t i = 0; i < 20; ++i) {
    records.push_back(record_of(net, i, "r" + std::to_string(i), "value"));
    net.store(i, records.back());
  }
  for (size_t i = 0; i < kHonest; ++i) {
    VirtualNetwork::NodeOptions sybil;
    sybil.seeds = {net.rng().below(kHonest)};
    sybil.endpoint = crowded_endpoint(0, i);
    net.add(sybil);
    net.run_for(milliseconds(100));
  }
  for (size_t i = kHonest; i < net.size(); ++i) // they entered what tables they could; now they
    net.set_frozen(i, true);                    // hear everything and say nothing
  for (const dht::Record& record : records)
    EXPECT_TRUE(holds(net.get(net.rng().below(kHonest), record.key), record));
  for (size_t i = 20; i < 40; ++i) {
    const dht::Record fresh = record_of(net, i, "fresh" + std::to_string(i), "value");
    EXPECT_GE(net.store(i, fresh).replicas, 4U);
    EXPECT_TRUE(holds(net.get(net.rng().below(kHonest), fresh.key), fresh));
  }
}

// dht-and-transport §5.4: fresh hellos and keys, ten thousand a second, and a node that holds many
// records: it answers those it knows, and its tables and memory stay what they were.
TEST(SimAttack, AFloodOfFreshKeysChangesNothingForThoseKnown) {
  VirtualNetwork net(42, {milliseconds(5), milliseconds(20)}, CipherKind::kSealed);
  grow(net, 12, 5 * kSecond);
  for (size_t i = 0; i < 100; ++i)
    net.store(i % 12, record_of(net, i % 12, "r" + std::to_string(i), "value"));
  const size_t peers = net.node(0).table().size();
  const dht::Record record = record_of(net, 0, "mine", "value");
  net.store(0, record);

  SeededRng rng(7);
  const auto flood = [&](size_t packets) {
    for (size_t i = 0; i < packets; ++i) {
      const auto stranger = crypto::Identity::generate(rng);
      dht::SealedCipher cipher(stranger, "sim", rng);
      std::array<uint8_t, 24> nonce{};
      const Buffer ping =
          dht::encode(dht::Header{1, false, {}, {}, net.wall(0)}, dht::Request(dht::PingRequest{}));
      net.inject(0, crowded_endpoint(static_cast<size_t>(rng.below(100)), i),
                 i % 2 == 0 ? cipher.hello(nonce)
                            : *cipher.seal(net.identity(0).public_key(), ping));
    }
  };
  for (int round = 0; round < 10; ++round) {
    flood(500);
    const Time began = net.now();
    EXPECT_TRUE(holds(net.get(3, record.key), record));
    EXPECT_LT(net.now() - began, 250 * kMillisecond);
    net.run_for(20 * kMillisecond);
  }
  EXPECT_GT(net.node(0).status().newcomers_refused, 500U);
  EXPECT_EQ(net.node(0).table().size(), peers);
  EXPECT_TRUE(net.node(0).status().requests_failed < 200U);
}

// A record its owner took back or replaced does not come back by being offered again.
TEST(SimAttack, ReplayedRecordsReviveNothing) {
  VirtualNetwork net(43, {}, CipherKind::kHash);
  grow(net, 20, 5 * kSecond);
  const dht::Record alive = record_of(net, 2, "a", "alive", 60'000);
  net.store(2, alive);
  net.run_for(kSecond);
  net.store(2, record_of(net, 2, "a", "", 60'000)); // a tombstone that lives as long
  for (int round = 0; round < 8; ++round) {
    net.store(7, alive);
    net.run_for(10 * kSecond);
    for (const dht::Record& found : net.get(11, alive.key).records)
      EXPECT_TRUE(found.is_tombstone());
  }
}

} // namespace
} // namespace lah::sim
