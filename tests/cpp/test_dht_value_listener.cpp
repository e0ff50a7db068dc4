// The values of a key as its listener holds them: what comes, changes, is taken back or expires.
#include <gtest/gtest.h>

#include "dht/value_listener.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

using sim::CipherKind;
using sim::named_key;
using sim::record_of;
using sim::VirtualNetwork;

struct ValueListenerTest : testing::Test {
  ValueListenerTest() : net(51, {milliseconds(20), milliseconds(60)}, CipherKind::kHash) {
    sim::grow(net, 12, 10 * kSecond);
  }

  std::unique_ptr<ValueListener> listen(size_t node) {
    auto listener = std::make_unique<ValueListener>(
        net.node(node), named_key("k"), [this](std::vector<Record> values) {
          texts.clear();
          for (const Record& record : values)
            texts.insert(std::string(as_text(record.payload)));
          ++calls;
        });
    EXPECT_TRUE(listener->listens());
    net.collect(node);
    return listener;
  }

  bool becomes(const std::multiset<std::string>& wanted, Duration limit = 3 * kSecond) {
    return net.run_until(net.now() + limit, [&] { return calls > 0 && texts == wanted; });
  }

  VirtualNetwork net;
  std::multiset<std::string> texts;
  size_t calls = 0;
};

TEST_F(ValueListenerTest, TellsOfEveryChangeAndOfNothingElse) {
  const auto listener = listen(7);
  EXPECT_TRUE(becomes({}));
  net.store(3, record_of(net, 3, "k", "a"));
  EXPECT_TRUE(becomes({"a"}));
  net.store(4, record_of(net, 4, "k", "a"));
  EXPECT_TRUE(becomes({"a", "a"}));
  net.store(3, record_of(net, 3, "k", "b"));
  EXPECT_TRUE(becomes({"a", "b"}));
  const size_t before = calls;
  net.store(3, record_of(net, 3, "k", "b")); // stored again as it was
  net.store(5, record_of(net, 5, "k", ""));  // takes back what was never there
  net.run_for(5 * kSecond);
  EXPECT_EQ(calls, before);
  net.store(3, record_of(net, 3, "k", ""));
  EXPECT_TRUE(becomes({"a"}));
  EXPECT_EQ(calls, before + 1);
}

TEST_F(ValueListenerTest, ExpiryIsAChangeAndARefreshPutsItOff) {
  const auto listener = listen(7);
  net.store(3, record_of(net, 3, "k", "brief", 10'000));
  net.store(4, record_of(net, 4, "k", "lasting"));
  EXPECT_TRUE(becomes({"brief", "lasting"}));
  net.run_for(7 * kSecond);
  net.store(3, record_of(net, 3, "k", "brief", 10'000));
  EXPECT_FALSE(becomes({"lasting"}, 8 * kSecond));
  EXPECT_TRUE(becomes({"lasting"}, 4 * kSecond));
  EXPECT_LT(listener->next_deadline(), kNever); // the lasting one expires too
}

TEST_F(ValueListenerTest, HearsNothingOnceItIsGone) {
  auto listener = listen(7);
  EXPECT_TRUE(becomes({}));
  listener.reset();
  net.store(3, record_of(net, 3, "k", "unheard"));
  net.run_for(5 * kSecond);
  EXPECT_EQ(calls, 1U);
}

} // namespace
} // namespace lah::dht
