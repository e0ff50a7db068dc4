// Agreements shared by the nodes of one thread are those each would have reached alone.
#include <gtest/gtest.h>

#include "crypto/key_agreements.hpp"

namespace lah::crypto {
namespace {

TEST(KeyAgreements, AreWhatBothSidesComputeAlone) {
  SeededRng rng(1);
  KeyAgreements shared;
  std::vector<Identity> identities;
  for (int i = 0; i < 20; ++i)
    identities.push_back(Identity::generate(rng));
  for (int round = 0; round < 2; ++round) // computed, then remembered
    for (const Identity& own : identities)
      for (const Identity& peer : identities)
        if (own.public_key() != peer.public_key()) {
          const auto alone = agree(own, peer.public_key());
          ASSERT_TRUE(alone);
          EXPECT_EQ(shared.agree(own, peer.public_key()), alone);
        }
}

TEST(KeyAgreements, RefusesWhatIsNoKey) {
  SeededRng rng(2);
  KeyAgreements shared;
  const Identity own = Identity::generate(rng);
  PublicKey ones;
  ones.fill(0xff);
  EXPECT_FALSE(shared.agree(own, ones));
  EXPECT_FALSE(shared.agree(own, PublicKey{}));
  EXPECT_FALSE(agree(own, PublicKey{}));
}

} // namespace
} // namespace lah::crypto
