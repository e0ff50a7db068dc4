// What an address that proved nothing can make a node send, to it or to whomever it claims to be.
#include <gtest/gtest.h>

#include "dht/node.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

constexpr WallMs kWall = 1'700'000'000'000;

struct AmplificationTest : testing::Test {
  AmplificationTest() {
    std::array<uint8_t, 32> random{};
    for (uint32_t i = 0; i < 60; ++i) {
      rng.fill(std::as_writable_bytes(std::span(random)));
      const Endpoint there = *Endpoint::parse("2001:db8:" + std::to_string(i) + "::1", 8081);
      node.learn(Contact::make(random, {}, there), milliseconds(20), now);
    }
    for (size_t i = 0; i < 4; ++i)
      node.start_store(now, kWall, node.sign(key, kWall + i, kWall + 60'000, Buffer(200)), now,
                       [](const StoreResult&) {});
    settle();
  }

  void settle() {
    for (int i = 0; i < 100; ++i) {
      node.on_timer(now += milliseconds(100), kWall);
      node.take_datagrams();
    }
  }

  // Bytes that go to an address within ten seconds of its one datagram.
  size_t provoked(ByteView datagram) {
    const Endpoint from = Endpoint::v4(0x50000001U + (++strangers << 8), 8081);
    size_t bytes = 0;
    const auto count = [&] {
      for (const Datagram& sent : node.take_datagrams())
        bytes += sent.to == from ? sent.bytes.size() : 0;
    };
    node.on_datagram(now, kWall, from, datagram);
    count();
    for (int i = 0; i < 100; ++i) {
      node.on_timer(now += milliseconds(100), kWall);
      count();
    }
    return bytes;
  }

  Buffer sealed(ByteView plaintext) {
    const auto stranger = crypto::Identity::generate(rng);
    SealedCipher stranger_cipher(stranger, "net", rng);
    return *stranger_cipher.seal(identity.public_key(), plaintext);
  }

  SeededRng rng{1};
  crypto::Identity identity = crypto::Identity::generate(rng);
  SealedCipher cipher{identity, "net", rng};
  Node node{{"net", {}, false}, identity, cipher, rng};
  Id key = record_key("test", {});
  Time now = 0;
  uint32_t strangers = 0;
};

TEST_F(AmplificationTest, EveryRequestOfEverySizeYieldsAtMostThreeTimesItsBytes) {
  std::vector<Request> requests{PingRequest{}, PageRequest{key, {}}, PageRequest{Id{}, PublicKey{}},
                                StoreRequest{}};
  for (const bool records : {false, true})
    for (size_t keys = 1; keys <= Limits::kFindKeys; ++keys)
      for (const size_t padding : {0U, 1U, 50U, 150U, 300U, 600U})
        requests.push_back(FindRequest{std::vector<Id>(keys, key), records, padding});
  StoreRequest store;
  for (size_t i = 0; i < Limits::kStoreBatch && i < 5; ++i) {
    store.records.push_back(node.sign(key, kWall, kWall + 1000, {}));
    requests.push_back(store);
  }
  for (const Request& request : requests)
    for (const bool client : {false, true}) {
      const Buffer datagram = sealed(encode(Header{1, client, {}, {}, kWall}, request));
      const size_t bytes = provoked(datagram);
      EXPECT_GT(bytes, 0U);
      EXPECT_LE(bytes, Limits::kAmplification * datagram.size())
          << "kind " << request.index() << ", client " << client;
    }
}

TEST_F(AmplificationTest, AnUnknownRequestAndAHelloYieldNoMore) {
  wire::Writer out;
  out.array(7).u64(30).u64(9).u64(0).bin(as_bytes(PuzzleNonce{})).bin({}).u64(kWall).bin({});
  const Buffer unknown = sealed(out.view());
  EXPECT_LE(provoked(unknown), Limits::kAmplification * unknown.size());
  std::array<uint8_t, 24> nonce{};
  const Buffer hello = cipher.hello(nonce);
  EXPECT_EQ(provoked(hello), hello.size());
}

TEST_F(AmplificationTest, WhatDoesNotDecryptYieldsNothing) {
  const Buffer good = sealed(encode(Header{1, false, {}, {}, kWall}, Request(PingRequest{})));
  for (size_t at = 0; at < good.size(); at += 3) {
    Buffer damaged = good;
    damaged[at] ^= std::byte{4}; // no kind of packet becomes another by this
    EXPECT_EQ(provoked(damaged), 0U) << at;
  }
  const auto stranger = crypto::Identity::generate(rng);
  SealedCipher other_network(stranger, "other", rng);
  EXPECT_EQ(provoked(*other_network.seal(
                identity.public_key(),
                encode(Header{1, false, {}, {}, kWall}, Request(FindRequest{{key}, true, 300})))),
            0U);
}

} // namespace
} // namespace lah::dht
