#include <gtest/gtest.h>

#include "crypto/sealed_packet.hpp"

namespace lah::crypto {
namespace {

struct SealedPacketTest : testing::Test {
  Buffer text{std::byte{1}, std::byte{2}, std::byte{3}};
  SeededRng rng{1};
  Identity alice = Identity::generate(rng);
  Identity bob = Identity::generate(rng);
  Identity eve = Identity::generate(rng);
  PacketSealer from_alice{alice, "net", rng};
  PacketSealer at_bob{bob, "net", rng};
  PacketSealer at_eve{eve, "net", rng};
};

TEST_F(SealedPacketTest, OpensForTheReceiverAlone) {
  const Buffer sealed = *from_alice.seal(bob.public_key(), text);
  EXPECT_EQ(sealed.size(), text.size() + kPacketOverhead);
  const auto packet = parse_packet(sealed);
  ASSERT_TRUE(packet);
  EXPECT_EQ(packet->sender, alice.public_key());
  const auto opened = at_bob.open(*packet);
  ASSERT_TRUE(opened);
  EXPECT_EQ(*opened, text);
  EXPECT_FALSE(at_eve.open(*packet));
  EXPECT_FALSE(PacketSealer(bob, "other net", rng).open(*packet));
  EXPECT_FALSE(from_alice.open(*packet)); // reflected to its sender
}

TEST_F(SealedPacketTest, EveryBitIsAuthenticated) {
  const Buffer sealed = *from_alice.seal(bob.public_key(), text);
  for (size_t bit = 0; bit < sealed.size() * 8; ++bit) {
    Buffer flipped = sealed;
    flipped[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    const auto packet = parse_packet(flipped);
    EXPECT_FALSE(packet && at_bob.open(*packet)) << bit;
  }
  for (size_t size = 0; size < sealed.size(); ++size) {
    const auto packet = parse_packet(ByteView(sealed).first(size));
    EXPECT_FALSE(packet && at_bob.open(*packet)) << size;
  }
}

TEST_F(SealedPacketTest, SizesAreBounded) {
  const Buffer largest(Limits::kDatagramBytes - kPacketOverhead);
  EXPECT_EQ(from_alice.seal(bob.public_key(), largest)->size(), Limits::kDatagramBytes);
  EXPECT_FALSE(from_alice.seal(bob.public_key(), Buffer(largest.size() + 1)));
  EXPECT_FALSE(parse_packet(Buffer(Limits::kDatagramBytes + 1, std::byte{1})));
}

TEST_F(SealedPacketTest, KeysOfSmallOrderAreRefused) {
  EXPECT_FALSE(from_alice.seal(PublicKey{}, text));
  PublicKey one{};
  one[0] = 1; // the neutral element
  EXPECT_FALSE(from_alice.seal(one, text));
}

TEST_F(SealedPacketTest, HelloFetchesASignedKeyForOneQuestion) {
  std::array<uint8_t, 24> nonce{};
  const Buffer question = from_alice.hello(nonce);
  const Buffer answer = at_bob.hello_reply(*parse_packet(question));
  EXPECT_EQ(answer.size(), question.size()); // nothing to amplify
  const auto reply = parse_packet(answer);
  ASSERT_TRUE(reply);
  EXPECT_TRUE(from_alice.accept_hello_reply(*reply, nonce));
  EXPECT_EQ(reply->sender, bob.public_key());

  std::array<uint8_t, 24> other = nonce;
  other[0] ^= 1;
  EXPECT_FALSE(from_alice.accept_hello_reply(*reply, other));
  EXPECT_FALSE(at_eve.accept_hello_reply(*reply, nonce)); // it was not her question
  Packet impostor = *reply;
  impostor.sender = eve.public_key();
  EXPECT_FALSE(from_alice.accept_hello_reply(impostor, nonce));
}

TEST(Identity, TheSameSeedIsTheSameKey) {
  std::array<uint8_t, 32> seed{};
  const Identity first = Identity::from_seed(seed);
  EXPECT_EQ(first.public_key(), Identity::from_seed(seed).public_key());
  seed[31] = 1;
  EXPECT_NE(first.public_key(), Identity::from_seed(seed).public_key());
  EXPECT_EQ(*exchange_key(first.public_key()), first.exchange_public());
}

} // namespace
} // namespace lah::crypto
