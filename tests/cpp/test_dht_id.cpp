#include <gtest/gtest.h>

#include "base/rng.hpp"
#include "dht/contact.hpp"

namespace lah::dht {
namespace {

Id random_id(Rng& rng) {
  std::array<uint8_t, 32> bytes{};
  rng.fill(std::as_writable_bytes(std::span(bytes)));
  return Id::from_bytes(bytes);
}

TEST(DhtId, BytesRoundTripAndOrderIsBigEndian) {
  SeededRng rng(1);
  for (int i = 0; i < 1000; ++i) {
    const Id a = random_id(rng);
    const Id b = random_id(rng);
    EXPECT_EQ(Id::from_bytes(a.bytes()), a);
    EXPECT_EQ(a < b, a.bytes() < b.bytes());
  }
}

TEST(DhtId, XorIsAMetricWithOneNearestPointAtEachDistance) {
  SeededRng rng(2);
  for (int i = 0; i < 1000; ++i) {
    const Id a = random_id(rng);
    const Id b = random_id(rng);
    const Id c = random_id(rng);
    EXPECT_EQ(distance(a, b), distance(b, a));
    EXPECT_EQ(distance(a, a), Id{});
    EXPECT_EQ(distance(distance(a, b), distance(b, c)), distance(a, c));
    if (common_prefix(a, b) > common_prefix(a, c)) {
      EXPECT_LT(distance(a, b), distance(a, c));
    }
  }
}

TEST(DhtId, CommonPrefixCountsBits) {
  Id a;
  EXPECT_EQ(common_prefix(a, a), 256U);
  for (size_t bit = 0; bit < 256; ++bit) {
    Id b;
    b.words[bit / 64] = uint64_t{1} << (63 - bit % 64);
    EXPECT_EQ(common_prefix(a, b), bit);
  }
}

TEST(DhtId, NodeIdsAreBoundToKeyAndPuzzle) {
  PublicKey key{};
  key[0] = 1;
  PuzzleNonce puzzle{};
  const Id id = node_id(key, puzzle);
  puzzle[7] = 1;
  EXPECT_NE(node_id(key, puzzle), id);
  EXPECT_NE(record_key("a", as_bytes("bc")), record_key("b", as_bytes("bc")));
}

TEST(DhtContact, RoundTripsBothAddressFamilies) {
  SeededRng rng(3);
  for (const char* ip : {"192.0.2.7", "2001:db8::1"}) {
    PublicKey key{};
    rng.fill(std::as_writable_bytes(std::span(key)));
    const Contact contact = Contact::make(key, {1, 2, 3}, *Endpoint::parse(ip, 8081));
    const Buffer bytes = encode_contact(contact);
    EXPECT_EQ(bytes.size(), contact.endpoint.is_v4() ? 46U : 58U);
    const auto decoded = decode_contact(bytes);
    ASSERT_TRUE(decoded);
    EXPECT_EQ(*decoded, contact);
    for (size_t cut = 0; cut < bytes.size(); ++cut)
      if (cut != 46) { // 46 bytes are a well-formed IPv4 contact
        EXPECT_FALSE(decode_contact(ByteView(bytes).first(cut)));
      }
  }
}

TEST(DhtContact, RefusesAddressesNobodyShouldBeSentTo) {
  for (const char* ip : {"0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "::", "ff02::1"})
    EXPECT_FALSE(is_sendable(*Endpoint::parse(ip, 1))) << ip;
  EXPECT_FALSE(is_sendable(*Endpoint::parse("192.0.2.7", 0)));
  EXPECT_TRUE(is_sendable(*Endpoint::parse("127.0.0.1", 1)));
  EXPECT_TRUE(is_sendable(*Endpoint::parse("2001:db8::1", 1)));
}

} // namespace
} // namespace lah::dht
