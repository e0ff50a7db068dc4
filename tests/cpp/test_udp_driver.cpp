// Real sockets on loopback.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <future>

#include "net/hello_responder.hpp"
#include "net/udp_driver.hpp"

namespace lah::net {
namespace {

const Endpoint kLoopback = *Endpoint::parse("127.0.0.1", 0);
constexpr Duration kPatience = 20 * kSecond; // for a busy machine

Endpoint loopback(uint16_t port) {
  Endpoint endpoint = kLoopback;
  endpoint.port = port;
  return endpoint;
}

struct SocketTest : testing::TestWithParam<UdpSocket::Calls> {
  // Reads until `count` datagrams have come.
  std::vector<std::pair<Endpoint, Buffer>> collect(UdpSocket& socket, size_t count) {
    std::vector<std::pair<Endpoint, Buffer>> got;
    auto poller = make_portable_poller();
    (*poller)->watch(socket.fd());
    const SystemClock clock;
    const Time until = clock.now() + kPatience;
    std::vector<int> ready;
    while (got.size() < count && clock.now() < until) {
      ready.clear();
      (*poller)->wait(kSecond, ready);
      socket.receive([&](const Endpoint& from, ByteView bytes) {
        got.emplace_back(from, Buffer(bytes.begin(), bytes.end()));
      });
    }
    return got;
  }
};

TEST_P(SocketTest, CarriesBatchesInOrderWithTheirSender) {
  auto a = UdpSocket::open(kLoopback, GetParam());
  auto b = UdpSocket::open(kLoopback, GetParam());
  ASSERT_TRUE(a && b);
  std::vector<dht::Datagram> datagrams;
  for (size_t i = 0; i < 100; ++i)
    datagrams.push_back({loopback(b->port()), Buffer(i + 1, static_cast<std::byte>(i))});
  EXPECT_EQ(a->send(datagrams), 100U);
  const auto got = collect(*b, 100);
  ASSERT_EQ(got.size(), 100U);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].first, loopback(a->port()));
    EXPECT_EQ(got[i].second, datagrams[i].bytes);
  }
}

TEST(UdpSocket, OpensMoreThanTheSoftLimitOfFiles) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = 64;
  if (before.rlim_max < 256)
    GTEST_SKIP() << "the hard limit is " << before.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  std::vector<UdpSocket> sockets;
  for (int i = 0; i < 100; ++i)
    if (auto opened = UdpSocket::open(kLoopback))
      sockets.push_back(std::move(*opened));
  EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(sockets.size(), 100U);
}

TEST_P(SocketTest, WhatCannotBeSentHarmsNothingElse) {
  auto a = UdpSocket::open(kLoopback, GetParam());
  auto b = UdpSocket::open(kLoopback, GetParam());
  ASSERT_TRUE(a && b);
  uint16_t closed_port = 0;
  {
    auto gone = UdpSocket::open(kLoopback, GetParam());
    ASSERT_TRUE(gone);
    closed_port = gone->port();
  }
  for (int round = 0; round < 3; ++round) {
    EXPECT_GE(a->send({{loopback(closed_port), Buffer(10)},   // ICMP: connection refused
                       {loopback(b->port()), Buffer(70'000)}, // EMSGSIZE
                       {loopback(b->port()), Buffer(10)}}),
              1U);
    EXPECT_EQ(collect(*b, 1).size(), 1U);
    a->receive([](const Endpoint&, ByteView) { ADD_FAILURE(); });
  }
}

TEST_P(SocketTest, AnOverlongDatagramStaysTooLong) {
  auto a = UdpSocket::open(kLoopback, GetParam());
  auto b = UdpSocket::open(kLoopback, GetParam());
  ASSERT_TRUE(a && b);
  a->send({{loopback(b->port()), Buffer(9000)}});
  const auto got = collect(*b, 1);
  ASSERT_EQ(got.size(), 1U);
  EXPECT_GT(got[0].second.size(), Limits::kDatagramBytes);
}

INSTANTIATE_TEST_SUITE_P(Calls, SocketTest,
                         testing::Values(UdpSocket::Calls::kBatched, UdpSocket::Calls::kSingle),
                         [](const auto& calls) {
                           return calls.param == UdpSocket::Calls::kBatched ? "batched" : "single";
                         });

TEST(UdpSocket, APortInUseIsNamedInTheError) {
  auto first = UdpSocket::open(kLoopback);
  ASSERT_TRUE(first);
  const auto second = UdpSocket::open(loopback(first->port()));
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message.find(std::to_string(first->port())), std::string::npos);
}

TEST(UdpSocket, AWildcardHearsIPv4AndIPv6WhereThereIs) {
  auto server = UdpSocket::open(*Endpoint::parse("0.0.0.0", 0));
  ASSERT_TRUE(server);
  auto v4 = UdpSocket::open(kLoopback);
  ASSERT_TRUE(v4);
  EXPECT_EQ(v4->send({{loopback(server->port()), Buffer(1)}}), 1U);
  if (auto v6 = UdpSocket::open(*Endpoint::parse("::1", 0))) {
    Endpoint to = *Endpoint::parse("::1", server->port());
    EXPECT_EQ(v6->send({{to, Buffer(1)}}), 1U);
  }
}

struct DriverTest : testing::Test {
  DriverTest() : thread(std::move(*NetThread::start())) {}

  std::unique_ptr<UdpDriver> open(std::vector<Endpoint> seeds, const std::string& network = "net") {
    SystemRng rng;
    auto driver = UdpDriver::open(*thread, crypto::Identity::generate(rng), kLoopback,
                                  {network, std::move(seeds), false});
    EXPECT_TRUE(driver);
    return std::move(*driver);
  }

  template <class T> T await(std::future<T> future) {
    EXPECT_EQ(future.wait_for(std::chrono::nanoseconds(kPatience)), std::future_status::ready);
    return future.get();
  }

  dht::GetResult get(UdpDriver& driver, const dht::Id& key) {
    auto promise = std::make_shared<std::promise<dht::GetResult>>();
    driver.post([promise, key](UdpDriver::Core& core, Time now, WallMs wall) {
      core.node.start_get(now, wall, key, now + 10 * kSecond,
                          [promise](dht::GetResult result) { promise->set_value(result); });
    });
    return await(promise->get_future());
  }

  dht::StoreResult store(UdpDriver& driver, const dht::Id& key) {
    auto promise = std::make_shared<std::promise<dht::StoreResult>>();
    driver.post([promise, key](UdpDriver::Core& core, Time now, WallMs wall) {
      core.node.start_store(now, wall, core.node.sign(key, wall, wall + 60'000, Buffer(3)),
                            now + 10 * kSecond,
                            [promise](const auto& result) { promise->set_value(result); });
    });
    return await(promise->get_future());
  }

  std::unique_ptr<NetThread> thread;
};

TEST_F(DriverTest, NodesFindEachOthersRecords) {
  std::vector<std::unique_ptr<UdpDriver>> nodes;
  nodes.push_back(open({}));
  for (int i = 0; i < 5; ++i)
    nodes.push_back(open({loopback(nodes[0]->port())}));
  const dht::Id key = dht::record_key("test", as_bytes("a"));
  EXPECT_GE(store(*nodes[2], key).replicas, 1U);
  for (const auto& node : nodes)
    EXPECT_EQ(get(*node, key).records.size(), 1U);
}

TEST_F(DriverTest, OpenOperationsEndWithTheirDriver) {
  auto silent = UdpSocket::open(kLoopback);
  ASSERT_TRUE(silent);
  auto node = open({loopback(silent->port())});
  auto promise = std::make_shared<std::promise<bool>>();
  node->post([promise](UdpDriver::Core& core, Time now, WallMs wall) {
    core.node.start_get(now, wall, {}, kNever,
                        [promise](const auto& result) { promise->set_value(result.complete); });
  });
  node.reset();
  EXPECT_FALSE(await(promise->get_future()));
}

TEST_F(DriverTest, RubbishIsCountedAndHarmsNothing) {
  auto node = open({});
  auto sender = UdpSocket::open(kLoopback);
  ASSERT_TRUE(sender);
  SeededRng rng(1);
  std::vector<dht::Datagram> rubbish;
  for (size_t i = 0; i < 200; ++i) {
    Buffer bytes(rng.below(1300));
    rng.fill(bytes);
    if (bytes.size() > 1 && i % 2 == 0) { // half of it looks like a packet
      bytes[0] = std::byte{crypto::kPacketVersion};
      bytes[1] = static_cast<std::byte>(1 + rng.below(3));
    }
    rubbish.push_back({loopback(node->port()), std::move(bytes)});
  }
  for (size_t at = 0; at < rubbish.size(); at += 20) {
    sender->send({rubbish.begin() + static_cast<std::ptrdiff_t>(at),
                  rubbish.begin() + static_cast<std::ptrdiff_t>(at + 20)});
    node->run_and_wait([](auto&, Time, WallMs) {});
  }
  EXPECT_EQ(store(*node, {}).replicas, 0U);
  const SystemClock clock;
  const Time until = clock.now() + kPatience;
  uint64_t bad = 0;
  while (bad < 150 && clock.now() < until)
    node->run_and_wait([&](auto& core, Time, WallMs) { bad = core.node.status().bad_packets; });
  EXPECT_GE(bad, 150U);
}

TEST_F(DriverTest, HelloAsksAResponderAndADhtNode) {
  SystemRng rng;
  const crypto::Identity identity = crypto::Identity::generate(rng);
  auto responder = HelloResponder::open(*thread, identity, kLoopback, "net");
  ASSERT_TRUE(responder);
  auto query = HelloQuery::open(*thread, loopback((*responder)->port()), "net");
  ASSERT_TRUE(query);
  ASSERT_TRUE((*query)->wait(kPatience));
  EXPECT_EQ((*query)->key(), identity.public_key());

  auto node = open({});
  auto second = HelloQuery::open(*thread, loopback(node->port()), "net");
  ASSERT_TRUE(second);
  ASSERT_TRUE((*second)->wait(kPatience));
  EXPECT_TRUE((*second)->key().has_value());
}

TEST_F(DriverTest, HelloGivesUpOnSilenceAndOnOtherNetworks) {
  auto silent = UdpSocket::open(kLoopback);
  ASSERT_TRUE(silent);
  auto node = open({}, "other");
  auto to_silent = HelloQuery::open(*thread, loopback(silent->port()), "net");
  auto to_other = HelloQuery::open(*thread, loopback(node->port()), "net");
  ASSERT_TRUE(to_silent && to_other);
  for (HelloQuery* query : {to_silent->get(), to_other->get()}) {
    ASSERT_TRUE(query->wait(kPatience));
    EXPECT_FALSE(query->key().has_value());
  }
}

} // namespace
} // namespace lah::net
