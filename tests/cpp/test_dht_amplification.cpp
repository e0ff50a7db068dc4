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

  Endpoint fresh_address() { return Endpoint::v4(0x50000001U + (++strangers << 8), 8081); }

  // Bytes that go to an address, and to that of `victim`, within ten seconds of its one datagram,
  // while what the node holds changes every second.
  size_t provoked(ByteView datagram) { return provoked(datagram, fresh_address()); }
  size_t provoked(ByteView datagram, const Endpoint& from) {
    size_t bytes = 0;
    const auto count = [&] {
      for (const Datagram& sent : asked->take_datagrams())
        bytes += sent.to == from || sent.to == victim.endpoint ? sent.bytes.size() : 0;
    };
    asked->on_datagram(now, kWall, from, datagram);
    count();
    for (int i = 0; i < 100; ++i) {
      asked->on_timer(now += milliseconds(100), kWall);
      if (i % 10 == 0) {
        ++seq;
        asked->start_store(now, kWall, asked->sign(key, seq, kWall + 60'000, Buffer(200 + seq % 2)),
                           now, [](const StoreResult&) {});
      }
      count();
    }
    return bytes;
  }

  Buffer sealed(ByteView plaintext) { return sealed(plaintext, crypto::Identity::generate(rng)); }
  Buffer sealed(ByteView plaintext, const crypto::Identity& stranger) {
    SealedCipher stranger_cipher(stranger, "net", rng);
    return *stranger_cipher.seal(identity.public_key(), plaintext);
  }

  // What the node gives this key at this address as a proof of it.
  Token token_of(const crypto::Identity& asker, const Endpoint& from) {
    node.on_datagram(now, kWall, from,
                     sealed(encode(Header{1, true, {}, {}, kWall}, Request(PingRequest{})), asker));
    SealedCipher asker_cipher(asker, "net", rng);
    for (const Datagram& sent : node.take_datagrams())
      if (sent.to == from)
        if (const auto message = decode(*asker_cipher.open(*crypto::parse_packet(sent.bytes))))
          return *std::get<ReplyMessage>(*message).header.token;
    return {};
  }

  SeededRng rng{1};
  crypto::Identity identity = crypto::Identity::generate(rng);
  SealedCipher cipher{identity, "net", rng};
  Node node{{"net", {}, false}, identity, cipher, rng};
  Node* asked = &node;
  Id key = record_key("test", {});
  Time now = 0;
  uint64_t seq = kWall + 10;
  uint32_t strangers = 0;
  Contact victim = Contact::make(crypto::Identity::generate(rng).public_key(), {},
                                 Endpoint::v4(0x60000001U, 8081));
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

TEST_F(AmplificationTest, ListeningNeedsAProofOfTheVeryAddress) {
  const auto listener = crypto::Identity::generate(rng);
  const Endpoint address = fresh_address();
  const Token token = token_of(listener, address);
  const auto listen = [&](const std::optional<Token>& shown, const crypto::Identity& who,
                          uint64_t lifetime_ms = Limits::kListenMs) {
    const Header header{2, true, {}, shown, kWall};
    return sealed(encode(header, Request(ListenRequest{key, lifetime_ms, true})), who);
  };
  for (const auto& shown :
       {std::optional<Token>{}, std::optional(Token{1}), std::optional(token)}) {
    const auto another = crypto::Identity::generate(rng);
    const Buffer by_another = listen(shown, another);
    EXPECT_LE(provoked(by_another), Limits::kAmplification * by_another.size());
    const Buffer elsewhere = listen(shown, listener);
    EXPECT_LE(provoked(elsewhere), Limits::kAmplification * elsewhere.size());
  }
  const Buffer proven = listen(token, listener);
  EXPECT_GT(provoked(proven, address), Limits::kAmplification * proven.size());
}

TEST_F(AmplificationTest, NotifiesYieldNoMore) {
  node.start_listen(key, [](const ListenEvent&) {});
  settle();
  for (const Id& about : {key, Id{{7, 7, 7, 7}}})
    for (size_t count = 0; count <= 8; ++count) {
      NotifyRequest notify{about, {}, {}};
      for (size_t i = 0; i < count; ++i) // of owners the node never heard of: it misses them all
        notify.refreshes.push_back({PublicKey{static_cast<uint8_t>(i + 1)}, 1, kWall + 9000, {}});
      if (count < 4)
        notify.records.push_back(node.sign(key, kWall, kWall + 1000, Buffer(count)));
      for (const bool client : {false, true}) {
        const Buffer datagram = sealed(encode(Header{1, client, {}, {}, kWall}, Request(notify)));
        const size_t bytes = provoked(datagram);
        EXPECT_GT(bytes, 0U);
        EXPECT_LE(bytes, Limits::kAmplification * datagram.size()) << count;
      }
    }
}

// Whom it names is sent no more either.
TEST_F(AmplificationTest, ObservesYieldNoMore) {
  using Step = ObserveRequest::Step;
  for (const Step step : {Step::kAsk, Step::kPassOn, Step::kDialBack})
    for (const size_t padding : {0U, 100U, 250U})
      for (const bool client : {false, true}) {
        ObserveRequest observe{step, 77, {}, step == Step::kPassOn ? 0 : padding};
        if (step == Step::kPassOn)
          observe.target = victim;
        const Buffer datagram = sealed(encode(Header{1, client, {}, {}, kWall}, Request(observe)));
        const size_t bytes = provoked(datagram);
        EXPECT_EQ(bytes == 0, step == Step::kDialBack && client);
        EXPECT_LE(bytes, Limits::kAmplification * datagram.size())
            << "step " << static_cast<int>(step) << ", client " << client;
      }
}

TEST_F(AmplificationTest, SoManyObservesASecondAreHelpedWithAndSoManyStrangersGreeted) {
  ObserveRequest observe{ObserveRequest::Step::kPassOn, 77, victim, 0};
  size_t dialled = 0;
  size_t greeted = 0;
  const size_t many = 2 * std::max(Limits::kObservesPerSecond, Limits::kGreetings);
  for (size_t i = 0; i < many; ++i) {
    const Endpoint from = fresh_address();
    node.on_datagram(now, kWall, from,
                     sealed(encode(Header{1, false, {}, {}, kWall}, Request(observe))));
    node.on_timer(now, kWall); // in which newcomers have their turn
    size_t answers = 0;
    for (const Datagram& sent : node.take_datagrams()) {
      dialled += sent.to == victim.endpoint;
      answers += sent.to == from;
    }
    ASSERT_GE(answers, 1U);
    greeted += answers - 1;
  }
  EXPECT_EQ(dialled, Limits::kObservesPerSecond);
  EXPECT_EQ(greeted, Limits::kGreetings);
}

// A stranger for whom the table is too full to greet it at once may be asked later: once.
TEST_F(AmplificationTest, StrangersThatMayReplaceOthersAreAskedOnce) {
  std::array<uint8_t, 32> random{};
  for (int round = 0; round < 10; ++round) {
    Node full{{"net", {}, false}, identity, cipher, rng};
    asked = &full;
    for (uint32_t i = 0; i < 600; ++i) {
      rng.fill(std::as_writable_bytes(std::span(random)));
      const Endpoint there = *Endpoint::parse("2001:db8:" + std::to_string(i) + "::1", 8081);
      full.learn(Contact::make(random, {}, there), milliseconds(200), now);
    }
    const Buffer datagram =
        sealed(encode(Header{1, false, {}, {}, kWall}, Request(FindRequest{{key}, true, 230})));
    EXPECT_LE(provoked(datagram), Limits::kAmplification * datagram.size());
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
