#include <gtest/gtest.h>

#include "net/connection_guard.hpp"

namespace lah::net {
namespace {

const ConnectionLimits kSmall{10, 4, 2, 2}; // total, per address, silent, per second

Endpoint address(uint32_t last) {
  return Endpoint::v4(0x0a000000 + last, 1000);
}

TEST(ConnectionGuard, SilentConnectionsOfOneAddressAreFew) {
  ConnectionGuard guard(kSmall);
  EXPECT_TRUE(guard.accepted(0, 1, address(1)));
  EXPECT_TRUE(guard.accepted(0, 2, address(1)));
  EXPECT_FALSE(guard.accepted(0, 3, address(1)));
  EXPECT_TRUE(guard.accepted(0, 4, address(2))) << "another address pays for itself";
  guard.heard(1);
  guard.heard(1);
  EXPECT_TRUE(guard.accepted(0, 5, address(1)));
  EXPECT_FALSE(guard.accepted(0, 6, address(1)));
  guard.closed(3); // the refused ones end too
  guard.closed(6);
  guard.closed(2);
  EXPECT_TRUE(guard.accepted(0, 7, address(1)));
  EXPECT_EQ(guard.refused(), 2U);
}

TEST(ConnectionGuard, ConnectionsOfOneAddressAndInAllAreLimited) {
  ConnectionGuard guard(kSmall);
  int fd = 0;
  for (uint32_t source = 1; source <= 3; ++source)
    for (int i = 0; i < 5; ++i) {
      const bool kept = guard.accepted(0, ++fd, address(source));
      EXPECT_EQ(kept, source < 3 ? i < 4 : i < 2) << source << " " << i;
      guard.heard(fd);
    }
  EXPECT_EQ(guard.open(), 10U);
  EXPECT_EQ(guard.refused(), 5U);
  for (int i = 1; i <= fd; ++i)
    guard.closed(i);
  EXPECT_EQ(guard.open(), 0U);
}

TEST(ConnectionGuard, AnAddressMayConnectOnlySoOften) {
  ConnectionGuard guard(kSmall);
  Time now = 0;
  int kept = 0;
  for (int i = 0; i < 1000; ++i) { // ten a second, each closed at once
    kept += guard.accepted(now, i, address(1)) ? 1 : 0;
    guard.closed(i);
    now += 100 * kMillisecond;
  }
  EXPECT_GE(kept, 200); // two a second, and the burst
  EXPECT_LE(kept, 204);
}

TEST(ConnectionGuard, LoopbackCountsInTheTotalOnly) {
  ConnectionGuard guard(kSmall);
  for (int i = 0; i < 10; ++i)
    EXPECT_TRUE(guard.accepted(0, i, Endpoint::v4(0x7f000001, 1)));
  EXPECT_FALSE(guard.accepted(0, 10, Endpoint::v4(0x7f000001, 1)));
  EXPECT_FALSE(guard.accepted(0, 11, address(1)));
}

TEST(ConnectionGuard, OneHouseholdOfIpv6AddressesIsOne) {
  ConnectionGuard guard(kSmall);
  for (uint16_t host = 1; host <= 3; ++host) {
    const auto from = Endpoint::parse("2001:db8::" + std::to_string(host), 1);
    ASSERT_TRUE(from);
    EXPECT_EQ(guard.accepted(0, host, *from), host <= 2);
  }
  const auto other = Endpoint::parse("2001:db8:0:1::1", 1);
  ASSERT_TRUE(other);
  EXPECT_TRUE(guard.accepted(0, 9, *other));
}

TEST(ConnectionGuard, DescriptorsComeAgain) {
  ConnectionGuard guard(kSmall);
  EXPECT_FALSE(guard.serial(1));
  EXPECT_TRUE(guard.accepted(0, 1, address(1)));
  const auto first = guard.serial(1);
  guard.closed(1);
  EXPECT_FALSE(guard.serial(1));
  EXPECT_TRUE(guard.accepted(0, 1, address(1)));
  EXPECT_TRUE(guard.accepted(0, 1, address(1)))
      << "its closure was missed, and does not count twice";
  EXPECT_NE(guard.serial(1), first);
  EXPECT_EQ(guard.open(), 1U);
}

TEST(ConnectionGuard, AcceptancesMayBeToldLast) {
  ConnectionGuard guard(kSmall);
  guard.closed(1);
  EXPECT_TRUE(guard.accepted(0, 1, address(1)));
  EXPECT_FALSE(guard.serial(1));
  EXPECT_EQ(guard.open(), 0U);
  for (int fd = 2; fd < 6; ++fd) {
    guard.heard(fd);
    EXPECT_TRUE(guard.accepted(0, fd, address(1))) << "none of them is silent";
  }
  EXPECT_EQ(guard.open(), 4U);
}

TEST(ConnectionGuard, ManyAddressesTakeBoundedMemory) {
  ConnectionGuard guard;
  for (uint32_t i = 0; i < 3 * Limits::kConnectionSources; ++i) {
    EXPECT_TRUE(guard.accepted(0, 1, address(i)));
    guard.closed(1);
  }
  EXPECT_LE(guard.sources(), Limits::kConnectionSources);
}

} // namespace
} // namespace lah::net
