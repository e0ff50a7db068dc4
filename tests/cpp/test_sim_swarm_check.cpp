// sim/swarm_check in small. The suite itself is lah_swarm_check.
#include "sim/swarm_check.hpp"

#include <gtest/gtest.h>

namespace lah::sim {
namespace {

SwarmReport small(uint64_t seed, CipherKind cipher) {
  return check_swarm({seed, 60, 420 * kSecond, cipher});
}

TEST(SimSwarmCheck, ASmallSwarmKeepsItsPromises) {
  const SwarmReport report = small(3, CipherKind::kHash);
  EXPECT_GT(report.asked, 100U);
  EXPECT_TRUE(report.violations.empty()) << report.violations.front();
}

TEST(SimSwarmCheck, ASeedIsARunAndNothingElseIs) {
  for (const CipherKind cipher : {CipherKind::kHash, CipherKind::kSealed}) {
    const SwarmReport once = check_swarm({5, 20, 360 * kSecond, cipher});
    // Other addresses in memory must not lead to another order of anything.
    std::vector<std::unique_ptr<std::array<char, 3000>>> moved(977);
    for (size_t i = 0; i < moved.size(); i += 2)
      moved[i] = std::make_unique<std::array<char, 3000>>();
    const SwarmReport again = check_swarm({5, 20, 360 * kSecond, cipher});
    EXPECT_EQ(once.log_hash, again.log_hash);
    EXPECT_EQ(once.events, again.events);
    EXPECT_NE(once.log_hash, check_swarm({6, 20, 360 * kSecond, cipher}).log_hash);
  }
}

} // namespace
} // namespace lah::sim
