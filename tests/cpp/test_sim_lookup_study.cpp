#include "sim/lookup_study.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace lah::sim {
namespace {

TEST(SimLookupStudy, LookupsOfASettledNetworkTakeAFewRoundTrips) {
  const Duration rtt = milliseconds(100);
  StudyOptions options;
  options.nodes = 400;
  options.lookups = 150;
  options.links = Faults::constant_rtt(rtt);
  std::vector<std::string> said;
  const StudyResult result = study_lookups(
      options, [&](const std::string& what, size_t, size_t) { said.push_back(what); });
  for (const auto* durations : {&result.gets, &result.closests, &result.stores}) {
    ASSERT_EQ(durations->size(), 150U);
    EXPECT_GE(std::ranges::min(*durations), rtt);
    EXPECT_LE(std::ranges::max(*durations), 4 * rtt);
  }
  EXPECT_EQ(result.found, 150U);
  EXPECT_DOUBLE_EQ(result.true_replicas, 1.0);
  EXPECT_GT(result.table_contacts, 200.0);
  for (const std::string what : {"nodes", "tables", "stores", "gets", "closest"})
    EXPECT_NE(std::ranges::find(said, what), said.end()) << what;
}

TEST(SimLookupStudy, DeathsCostTimeAndNoValues) {
  StudyOptions options;
  options.nodes = 400;
  options.lookups = 150;
  options.dead = 0.2;
  options.links.loss = 0.05;
  const StudyResult result = study_lookups(options);
  EXPECT_EQ(result.found, 150U);
  EXPECT_GT(result.true_replicas, 0.98);
  EXPECT_EQ(result.log_hash, study_lookups(options).log_hash);
  options.seed = 2;
  EXPECT_NE(result.log_hash, study_lookups(options).log_hash);
}

} // namespace
} // namespace lah::sim
