// The swarm suite: many seeds of sim/swarm_check in one process. A failure prints the command that
// repeats it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sim/swarm_check.hpp"

namespace {

using lah::sim::SwarmOptions;
using lah::sim::SwarmReport;

[[noreturn]] void usage() {
  std::fputs("usage: lah_swarm_check [--first 1] [--seeds 1] [--nodes 500] [--minutes 10] "
             "[--sealed]\n",
             stderr);
  std::exit(2);
}

struct Suite {
  SwarmOptions options;
  uint64_t seeds = 1;
};

Suite parse(int argc, char** argv) {
  Suite suite;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--sealed") {
      suite.options.cipher = lah::sim::CipherKind::kSealed;
      continue;
    }
    if (i + 1 == argc)
      usage();
    const uint64_t value = std::strtoull(argv[++i], nullptr, 10);
    if (value == 0)
      usage();
    if (name == "--first")
      suite.options.seed = value;
    else if (name == "--seeds")
      suite.seeds = value;
    else if (name == "--nodes" && value >= 20)
      suite.options.nodes = value;
    else if (name == "--minutes" && value >= 6)
      suite.options.duration = static_cast<lah::Duration>(value) * 60 * lah::kSecond;
    else
      usage();
  }
  return suite;
}

void print(const SwarmOptions& options, const SwarmReport& report, double seconds) {
  std::printf("seed %llu: found %zu of %zu, %.0f B/s a node, at most %zu operations, %llu events "
              "in %.1f s, log %.16s\n",
              static_cast<unsigned long long>(options.seed), report.found, report.asked,
              report.bytes_per_second, report.operations_most,
              static_cast<unsigned long long>(report.events), seconds, report.log_hash.c_str());
  for (const std::string& violation : report.violations)
    std::printf("  VIOLATION %s\n", violation.c_str());
  if (!report.violations.empty())
    std::printf("  REPEAT lah_swarm_check --first %llu --nodes %zu --minutes %lld%s\n",
                static_cast<unsigned long long>(options.seed), options.nodes,
                static_cast<long long>(options.duration / (60 * lah::kSecond)),
                options.cipher == lah::sim::CipherKind::kSealed ? " --sealed" : "");
  std::fflush(stdout);
}

} // namespace

int main(int argc, char** argv) {
  Suite suite = parse(argc, argv);
  size_t asked = 0;
  size_t found = 0;
  size_t broken = 0;
  for (uint64_t i = 0; i < suite.seeds; ++i, ++suite.options.seed) {
    const auto began = std::chrono::steady_clock::now();
    const SwarmReport report = lah::sim::check_swarm(suite.options);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    print(suite.options, report, took.count());
    asked += report.asked;
    found += report.found;
    broken += !report.violations.empty();
  }
  const double share = static_cast<double>(found) / static_cast<double>(asked);
  std::printf("found %zu of %zu records with a live owner (%.3f %%); %zu of %llu seeds broken\n",
              found, asked, 100 * share, broken, static_cast<unsigned long long>(suite.seeds));
  const bool enough = share >= (suite.seeds >= 5 ? lah::sim::kFoundSuite : lah::sim::kFoundSeed);
  return broken == 0 && enough ? 0 : 1;
}
