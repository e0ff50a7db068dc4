#include <gtest/gtest.h>

#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "net/net_thread.hpp"

namespace lah::net {
namespace {

struct PollerTest : testing::TestWithParam<bool> {
  PollerTest() {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
    auto made = GetParam() ? make_portable_poller() : make_poller();
    EXPECT_TRUE(made);
    poller = std::move(*made);
  }
  ~PollerTest() override {
    close(ends[0]);
    close(ends[1]);
  }
  std::vector<int> wait(Duration timeout) {
    std::vector<int> ready;
    poller->wait(timeout, ready);
    return ready;
  }

  std::array<int, 2> ends{};
  std::unique_ptr<Poller> poller;
};

TEST_P(PollerTest, ReportsReadableDescriptorsAgainAndAgain) {
  poller->watch(ends[0]);
  EXPECT_TRUE(wait(0).empty());
  ASSERT_EQ(write(ends[1], "x", 1), 1);
  EXPECT_EQ(wait(kNever), std::vector{ends[0]});
  EXPECT_EQ(wait(0), std::vector{ends[0]}); // level-triggered
  poller->unwatch(ends[0]);
  EXPECT_TRUE(wait(0).empty());
}

TEST_P(PollerTest, WakesFromAnotherThreadAndBeforeTheWait) {
  poller->wake();
  poller->wake();
  EXPECT_TRUE(wait(kNever).empty());
  std::thread waker([this] { poller->wake(); });
  EXPECT_TRUE(wait(kNever).empty());
  waker.join();
}

TEST_P(PollerTest, ReturnsAtItsDeadline) {
  const SystemClock clock;
  const Time began = clock.now();
  EXPECT_TRUE(wait(milliseconds(20)).empty());
  EXPECT_GE(clock.now() - began, milliseconds(19));
}

INSTANTIATE_TEST_SUITE_P(Kinds, PollerTest, testing::Values(false, true),
                         [](const auto& kind) { return kind.param ? "portable" : "native"; });

TEST(NetThread, RunsCommandsInOrderAndAllBeforeItEnds) {
  std::vector<int> seen;
  {
    auto thread = NetThread::start();
    ASSERT_TRUE(thread);
    for (int i = 0; i < 1000; ++i)
      (*thread)->post([&seen, i] { seen.push_back(i); });
    (*thread)->run_and_wait([&] { EXPECT_EQ(seen.size(), 1000U); });
    (*thread)->post([&seen] { seen.push_back(1000); });
  }
  ASSERT_EQ(seen.size(), 1001U);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
}

} // namespace
} // namespace lah::net
