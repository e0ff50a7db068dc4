// Closed networks: who shows no certificate of the run's owner is told nothing, asked nothing and
// held for nobody.
#include <gtest/gtest.h>

#include "sim_swarm.hpp"

namespace lah::sim {
namespace {

constexpr uint64_t kDayMs = 86'400'000;

TEST(Certificate, IsForOneKeyOneNetworkAndOneExpiry) {
  SeededRng rng(1);
  const auto owner = crypto::Identity::generate(rng);
  const auto node = crypto::Identity::generate(rng).public_key();
  const auto certificate = crypto::issue_certificate(owner, "net", node, 5);
  const auto valid = [&](const crypto::PublicKey& by, std::string_view network,
                         const crypto::PublicKey& whose, const crypto::Certificate& which) {
    return crypto::verify_certificate(by, network, whose, which);
  };
  EXPECT_TRUE(valid(owner.public_key(), "net", node, certificate));
  EXPECT_FALSE(valid(owner.public_key(), "other", node, certificate));
  EXPECT_FALSE(valid(owner.public_key(), "net", owner.public_key(), certificate));
  EXPECT_FALSE(valid(node, "net", node, certificate));
  crypto::Certificate longer = certificate;
  ++longer.expiry_ms;
  EXPECT_FALSE(valid(owner.public_key(), "net", node, longer));
  const Buffer encoded = crypto::encode_certificate(certificate);
  EXPECT_EQ(encoded.size(), Limits::kCertificateBytes);
  EXPECT_EQ(crypto::decode_certificate(encoded)->expiry_ms, 5U);
  EXPECT_EQ(crypto::decode_certificate(encoded)->signature, certificate.signature);
  for (size_t size = 0; size < encoded.size(); ++size)
    EXPECT_FALSE(crypto::decode_certificate(ByteView(encoded).first(size)));
}

struct AdmissionTest : testing::Test {
  Buffer certificate(const crypto::PublicKey& key, WallMs expiry) const {
    return crypto::encode_certificate(crypto::issue_certificate(owner, "net", key, expiry));
  }
  SeededRng rng{1};
  crypto::Identity owner = crypto::Identity::generate(rng);
  crypto::PublicKey key = crypto::Identity::generate(rng).public_key();
  dht::Admission admission{{owner.public_key(), {}}, "net"};
};

TEST_F(AdmissionTest, RemembersAKeyUntilItsCertificateExpires) {
  EXPECT_FALSE(admission.admits(key, {}, 1000));
  EXPECT_TRUE(admission.admits(key, certificate(key, 2000), 1000));
  EXPECT_TRUE(admission.admits(key, {}, 1999));
  EXPECT_FALSE(admission.admits(key, {}, 2000));
  EXPECT_FALSE(admission.admits(key, certificate(key, 2000), 2000));
  EXPECT_TRUE(admission.admits(key, certificate(key, 3000), 2000)); // renewed
  EXPECT_TRUE(admission.admits(key, certificate(key, 2500), 2600)) << "an older one takes nothing";
}

TEST_F(AdmissionTest, ABadCertificateAdmitsNobodyAndIsNotReadAgainAtOnce) {
  Buffer forged = certificate(key, 5000);
  forged.back() ^= std::byte{1};
  EXPECT_FALSE(admission.admits(key, forged, 1000));
  EXPECT_FALSE(admission.admits(key, certificate(key, 5000), 1001));
  EXPECT_TRUE(admission.admits(key, certificate(key, 5000), 4000));
  EXPECT_TRUE(admission.admits(key, forged, 4001)) << "nor does it cost the admission it had";
  EXPECT_FALSE(admission.admits(key, Buffer(3), 9000));
}

TEST_F(AdmissionTest, IsBounded) {
  EXPECT_TRUE(dht::Admission({}, "net").admits(key, {}, 0));
  EXPECT_EQ(admission.remembered(), 0U);
}

// A swarm in which every node but the last few has a certificate.
struct ClosedSwarm : testing::Test {
  size_t join(uint64_t lifetime_ms) {
    VirtualNetwork::NodeOptions options;
    if (net.size() > 0)
      options.seeds = {0};
    options.configure = [&](dht::NodeConfig& config) {
      config.admission.owner = owner.public_key();
    };
    const size_t index = net.add(options);
    if (lifetime_ms > 0)
      certify(index, lifetime_ms);
    net.collect(index);
    net.run_for(milliseconds(200));
    return index;
  }
  void certify(size_t index, uint64_t lifetime_ms) {
    net.node(index).renew_certificate(crypto::encode_certificate(crypto::issue_certificate(
        owner, "sim", net.identity(index).public_key(), net.wall(index) + lifetime_ms)));
  }
  void grow_closed(size_t count) {
    for (size_t i = 0; i < count; ++i)
      join(kDayMs);
    net.run_for(10 * kSecond);
  }
  bool is_known(size_t index) {
    for (size_t i = 0; i < net.size(); ++i)
      if (i != index && net.node(i).table().contains(net.node(index).id()))
        return true;
    return false;
  }

  VirtualNetwork net{31, {}, CipherKind::kSealed};
  crypto::Identity owner = crypto::Identity::generate(net.rng());
};

TEST_F(ClosedSwarm, AdmittedNodesStoreAndFind) {
  grow_closed(15);
  const dht::Record record = record_of(net, 4, "a", std::string(Limits::kRecordPayloadBytes, 'x'));
  EXPECT_EQ(record.certificate.size(), Limits::kCertificateBytes);
  EXPECT_GE(net.store(4, record).replicas, 8U);
  for (size_t asker = 0; asker < net.size(); ++asker)
    EXPECT_TRUE(holds(net.get(asker, record.key), record)) << asker;
  for (size_t i = 0; i < net.size(); ++i) {
    EXPECT_TRUE(net.node(i).ready()) << i;
    EXPECT_EQ(net.node(i).status().refusals, 0U) << i;
  }
}

TEST_F(ClosedSwarm, AStrangerIsToldSoAndEntersNoTable) {
  grow_closed(10);
  const size_t stranger = join(0);
  net.run_for(30 * kSecond);
  EXPECT_FALSE(net.node(stranger).ready());
  EXPECT_GT(net.node(stranger).status().refusals, 0U);
  EXPECT_FALSE(is_known(stranger));
  const dht::Record record = record_of(net, 2, "a", "value");
  net.store(2, record);
  EXPECT_TRUE(net.get(stranger, record.key).records.empty());
  EXPECT_EQ(net.store(stranger, record_of(net, stranger, "b", "value")).replicas, 0U);
  EXPECT_TRUE(net.get(3, named_key("b")).records.empty());
}

TEST_F(ClosedSwarm, RecordsOfOthersAreNeitherKeptNorBelieved) {
  grow_closed(10);
  const auto outsider = crypto::Identity::generate(net.rng());
  const WallMs wall = net.wall(1);
  const dht::Record smuggled = // by an admitted node
      dht::sign_record(outsider, "sim", named_key("a"), wall, wall + 60'000, payload("x"));
  EXPECT_EQ(net.store(1, smuggled).replicas, 0U);
  EXPECT_TRUE(net.get(5, smuggled.key).records.empty());
}

TEST_F(ClosedSwarm, AnExpiredCertificateEndsItAndARenewedOneDoesNot) {
  grow_closed(8);
  const size_t renewed = join(60'000);
  const size_t expired = join(60'000);
  net.run_for(10 * kSecond);
  EXPECT_TRUE(net.node(expired).ready());
  certify(renewed, kDayMs);
  net.run_for(110 * kSecond);
  const dht::Record good = record_of(net, renewed, "good", "value");
  EXPECT_GE(net.store(renewed, good).replicas, 7U);
  EXPECT_TRUE(holds(net.get(3, good.key), good));
  const dht::Record bad = record_of(net, expired, "bad", "value");
  EXPECT_EQ(net.store(expired, bad).replicas, 0U);
  EXPECT_TRUE(net.get(3, bad.key).records.empty());
  net.run_for(120 * kSecond);
  EXPECT_FALSE(is_known(expired));
  EXPECT_TRUE(is_known(renewed));
}

TEST_F(ClosedSwarm, ARestartedNodeIsAdmittedAgain) {
  grow_closed(10);
  net.restart(4);
  certify(4, kDayMs);
  net.run_for(20 * kSecond);
  EXPECT_TRUE(net.node(4).ready());
  const dht::Record record = record_of(net, 4, "again", "value");
  EXPECT_GE(net.store(4, record).replicas, 8U);
  EXPECT_TRUE(holds(net.get(7, record.key), record));
}

} // namespace
} // namespace lah::sim
