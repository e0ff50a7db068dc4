// Listening to a key: reads that go round the ring of owners, and pushes of what changes.
#include <gtest/gtest.h>

#include "crypto/sealed_packet.hpp"
#include "dht/ring_cover.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

using sim::CipherKind;
using sim::Faults;
using sim::named_key;
using sim::record_of;
using sim::VirtualNetwork;

Id id_of(uint64_t number) {
  return {{0, 0, 0, number}};
}

// --- RingCover -----------------------------------------------------------------------------------

TEST(DhtRingCover, ArcsGrowTogether) {
  RingCover cover;
  EXPECT_FALSE(cover.complete());
  ASSERT_EQ(cover.gaps().size(), 1U);
  EXPECT_FALSE(cover.gaps()[0].after);
  cover.add(id_of(10), id_of(20));
  cover.add(id_of(30), id_of(40));
  ASSERT_EQ(cover.gaps().size(), 3U);
  EXPECT_EQ(cover.gaps()[1].after, id_of(20));
  EXPECT_EQ(cover.gaps()[1].last, id_of(30));
  cover.add(id_of(20), id_of(30));
  EXPECT_EQ(cover.gaps().size(), 2U);
  cover.add(Id{}, id_of(15));
  cover.add(id_of(15), RingCover::kLast);
  EXPECT_TRUE(cover.complete());
  EXPECT_TRUE(cover.gaps().empty());
}

TEST(DhtRingCover, EqualsASetOfNumbers) {
  SeededRng rng(3);
  for (int round = 0; round < 200; ++round) {
    RingCover cover;
    std::set<uint64_t> read;
    for (int i = 0; i < 12; ++i) {
      const uint64_t first = rng.below(64);
      const uint64_t last = first + rng.below(64 - first);
      cover.add(id_of(first), id_of(last));
      for (uint64_t n = first; n <= last; ++n)
        read.insert(n);
    }
    cover.add(id_of(63), RingCover::kLast);
    read.insert(63);
    // A gap's ends are covered, or the ends of the ring; what lies between is not.
    std::set<uint64_t> missing;
    for (const RingCover::Gap& gap : cover.gaps())
      for (uint64_t n = gap.after ? gap.after->words[3] + 1 : 0; n < gap.last.words[3]; ++n)
        missing.insert(n);
    for (uint64_t n = 0; n < 64; ++n)
      EXPECT_EQ(missing.contains(n), !read.contains(n)) << n;
  }
}

// --- messages ------------------------------------------------------------------------------------

template <class Body, class Message> Body through_the_wire(const Body& body) {
  const Header header{UINT64_MAX, true, {1, 2, 3, 4, 5, 6, 7, 8}, Token{5}, UINT64_MAX};
  const Buffer bytes = encode(header, body);
  EXPECT_LE(bytes.size() + crypto::kPacketOverhead, Limits::kDatagramBytes);
  auto decoded = decode(bytes);
  EXPECT_TRUE(decoded);
  return std::get<Message>(*decoded).body;
}

TEST(DhtListenMessages, RoundTripInTheLargestForm) {
  const auto listen = std::get<ListenRequest>(
      through_the_wire<Request, RequestMessage>(ListenRequest{id_of(7), Limits::kListenMs, true}));
  EXPECT_EQ(listen.key, id_of(7));
  EXPECT_EQ(listen.lifetime_ms, Limits::kListenMs);
  EXPECT_TRUE(listen.refreshes);

  ListenReply granted{Limits::kListenMs, {}};
  granted.digest.fill(UINT64_MAX);
  EXPECT_EQ(std::get<ListenReply>(through_the_wire<Reply, ReplyMessage>(granted)).digest,
            granted.digest);

  Record record{
      {}, PublicKey{1}, UINT64_MAX, UINT64_MAX, Buffer(Limits::kRecordPayloadBytes, std::byte{7})};
  const NotifyRequest full{id_of(7), {record}, {}};
  EXPECT_EQ(std::get<NotifyRequest>(through_the_wire<Request, RequestMessage>(full)).records,
            full.records);
  const NotifyRequest refreshes{id_of(7), {}, std::vector<Refresh>(8, {PublicKey{2}, 1, 2, {3}})};
  EXPECT_EQ(std::get<NotifyRequest>(through_the_wire<Request, RequestMessage>(refreshes)).refreshes,
            refreshes.refreshes);

  const NotifyReply answer{true, std::vector<PublicKey>(8, PublicKey{9})};
  const auto answered = std::get<NotifyReply>(through_the_wire<Reply, ReplyMessage>(answer));
  EXPECT_TRUE(answered.listening);
  EXPECT_EQ(answered.missing, answer.missing);
}

// --- a swarm in which some listen ----------------------------------------------------------------

struct Listening {
  std::map<PublicKey, Record> held;
  size_t events = 0;
  size_t firsts = 0;
  size_t refreshed = 0;
  std::vector<Time> changed_at = {};
};

struct ListenTest : testing::Test {
  explicit ListenTest(Faults faults = {milliseconds(20), milliseconds(60), 0.05, 0.01})
      : net(41, faults, CipherKind::kHash) {
    sim::grow(net, 30, 10 * kSecond);
  }

  // Whoever listens hears of all changes, in `out`.
  ListenId listen(size_t node, const Id& key, Listening& out) {
    const auto id = net.node(node).start_listen(key, [this, &out](const ListenEvent& event) {
      ++out.events;
      out.firsts += event.first;
      EXPECT_EQ(event.first, out.events == 1);
      out.refreshed += event.refreshed.size();
      for (const Record& record : event.changed) {
        out.held.insert_or_assign(record.owner, record);
        out.changed_at.push_back(net.now());
      }
      for (const Record& record : event.refreshed) {
        ASSERT_TRUE(out.held.contains(record.owner));
        EXPECT_EQ(out.held.at(record.owner).payload, record.payload);
        out.held.insert_or_assign(record.owner, record);
      }
    });
    net.collect(node);
    EXPECT_TRUE(id);
    return id.value_or(0);
  }

  bool wait(Duration limit, const std::function<bool()>& done) {
    return net.run_until(net.now() + limit, done);
  }

  const PublicKey& owner(size_t node) { return net.identity(node).public_key(); }

  VirtualNetwork net;
};

TEST_F(ListenTest, WhatIsThereComesFirstAndChangesFollowAtOnce) {
  const Id key = named_key("k");
  for (size_t node = 3; node < 20; ++node)
    net.store(node, record_of(net, node, "k", "first" + std::to_string(node)));
  Listening heard;
  listen(25, key, heard);
  ASSERT_TRUE(wait(3 * kSecond, [&] { return heard.firsts == 1; }));
  EXPECT_EQ(heard.held.size(), 17U);

  net.run_for(5 * kSecond);
  for (size_t node = 3; node < 23; ++node) { // some change, some are new
    const Record record = record_of(net, node, "k", "second");
    const Time began = net.now();
    net.store(node, record);
    EXPECT_TRUE(wait(kSecond, [&] {
      const auto found = heard.held.find(record.owner);
      return found != heard.held.end() && found->second == record;
    })) << node;
    EXPECT_LT(net.now() - began, 2 * kSecond);
  }
  net.store(5, record_of(net, 5, "k", ""));
  EXPECT_TRUE(wait(kSecond, [&] { return heard.held.at(owner(5)).is_tombstone(); }));
  EXPECT_EQ(heard.firsts, 1U);
}

TEST_F(ListenTest, RefreshesComeWithoutPayloads) {
  const size_t client = net.add({.seeds = {0}, .client_mode = true}); // it holds no replica
  net.run_for(5 * kSecond);
  Listening heard;
  listen(client, named_key("k"), heard);
  const std::string text(700, 'x');
  for (size_t node = 3; node < 9; ++node)
    net.store(node, record_of(net, node, "k", text));
  ASSERT_TRUE(wait(5 * kSecond, [&] { return heard.held.size() == 6; }));
  net.run_for(10 * kSecond);
  size_t payloads = 0;
  net.on_delivery = [&](const Endpoint&, size_t to, ByteView bytes) {
    payloads += to == client && bytes.size() > text.size();
  };
  for (size_t node = 3; node < 9; ++node)
    net.store(node, record_of(net, node, "k", text));
  ASSERT_TRUE(wait(10 * kSecond, [&] { return heard.refreshed >= 6; }));
  EXPECT_LE(payloads, 3U); // by replicas that missed the first store
}

TEST_F(ListenTest, AnEmptyKeyIsToldToBeEmpty) {
  Listening heard;
  listen(25, named_key("nothing"), heard);
  ASSERT_TRUE(wait(3 * kSecond, [&] { return heard.events > 0; }));
  EXPECT_TRUE(heard.held.empty());
}

TEST_F(ListenTest, SeveralListenersShareWhatIsKnown) {
  net.store(3, record_of(net, 3, "k", "x"));
  Listening first, second;
  const ListenId one = listen(25, named_key("k"), first);
  ASSERT_TRUE(wait(3 * kSecond, [&] { return first.firsts == 1; }));
  const uint64_t packets = net.node(25).status().packets_out;
  listen(25, named_key("k"), second);
  ASSERT_TRUE(wait(10 * kMillisecond, [&] { return second.firsts == 1; }));
  EXPECT_EQ(second.held, first.held);
  EXPECT_LE(net.node(25).status().packets_out - packets, 1U);
  net.node(25).stop_listen(one);
  net.collect(25);
  net.store(4, record_of(net, 4, "k", "y"));
  ASSERT_TRUE(wait(kSecond, [&] { return second.held.size() == 2; }));
  EXPECT_EQ(first.held.size(), 1U);
}

TEST_F(ListenTest, AListenerIsToldWhileItsReplicasDie) {
  Listening heard;
  listen(25, named_key("k"), heard);
  net.run_for(3 * kSecond);
  // The nodes closest to the key, one after the other, until only the farther half is left.
  std::vector<size_t> nodes;
  for (size_t node = 1; node < 24; ++node)
    nodes.push_back(node);
  std::sort(nodes.begin(), nodes.end(), [&](size_t a, size_t b) {
    return distance(net.node(a).id(), named_key("k")) < distance(net.node(b).id(), named_key("k"));
  });
  for (size_t i = 0; i < 8; ++i) {
    net.set_up(nodes[i], false);
    net.run_for(40 * kSecond);
    const Record record = record_of(net, 27, "k", "life " + std::to_string(i));
    net.store(27, record);
    EXPECT_TRUE(wait(3 * kSecond, [&] {
      return heard.held.contains(record.owner) && heard.held.at(record.owner) == record;
    })) << i;
  }
}

TEST_F(ListenTest, AForgedOrForeignPushIsIgnored) {
  Listening heard;
  listen(25, named_key("k"), heard);
  net.run_for(3 * kSecond);
  // Node 3 is known and holds a record that is properly signed, but nobody asked it to tell.
  bool listening = true;
  const NotifyRequest push{named_key("k"), {record_of(net, 3, "k", "x")}, {}};
  size_t teller = 3;
  while (net.node(teller).storage().records() > 0)
    ++teller;
  net.node(teller).start(
      net.now(),
      std::make_unique<ExchangeOperation>(Contact::make(owner(25), {}, net.endpoint(25)), push,
                                          [&](const Reply* reply) {
                                            const auto* answer = std::get_if<NotifyReply>(reply);
                                            listening = answer != nullptr && answer->listening;
                                          }),
      kNever);
  net.collect(teller);
  EXPECT_TRUE(wait(3 * kSecond, [&] { return !listening; }));
  EXPECT_TRUE(heard.held.empty());
}

// The amplification of a push is the listener's own: a LISTEN without a token is refused.
TEST(DhtListen, NobodyListensForAnother) {
  VirtualNetwork net(43, {}, CipherKind::kHash);
  sim::grow(net, 3, 5 * kSecond);
  const size_t stranger = net.add({.client_mode = true});
  std::optional<ErrorCode> refused;
  net.node(stranger).start(
      net.now(),
      std::make_unique<ExchangeOperation>(
          Contact::make(net.identity(0).public_key(), {}, net.endpoint(0)),
          ListenRequest{named_key("k"), 60'000, true},
          [&](const Reply* reply) { refused = std::get<ErrorReply>(*reply).code; }),
      kNever);
  net.collect(stranger);
  EXPECT_TRUE(net.run_until(net.now() + 3 * kSecond, [&] { return refused.has_value(); }));
  EXPECT_EQ(*refused, ErrorCode::kNotPermitted);
}

TEST(DhtListen, OneNodeListensToSoManyKeys) {
  VirtualNetwork net(3, {}, CipherKind::kHash);
  Node& node = net.node(net.add({}));
  std::vector<ListenId> listens;
  for (size_t i = 0; i < Limits::kSubscriptions; ++i)
    listens.push_back(node.start_listen(id_of(i), [](const ListenEvent&) {}).value());
  EXPECT_FALSE(node.start_listen(id_of(Limits::kSubscriptions), [](const ListenEvent&) {}));
  EXPECT_TRUE(node.start_listen(id_of(0), [](const ListenEvent&) {})); // shares what there is
  node.stop_listen(listens[1]);
  EXPECT_TRUE(node.start_listen(id_of(Limits::kSubscriptions), [](const ListenEvent&) {}));
}

TEST(DhtListen, LoneNodesHearThemselvesAndLaterTheOthers) {
  VirtualNetwork net(44, {}, CipherKind::kHash);
  net.add({});
  size_t records = 0;
  ASSERT_TRUE(net.node(0).start_listen(
      named_key("k"), [&](const ListenEvent& event) { records += event.changed.size(); }));
  net.collect(0);
  net.store(0, record_of(net, 0, "k", "mine"));
  EXPECT_TRUE(net.run_until(net.now() + kSecond, [&] { return records == 1; }));
  net.add({.seeds = {0}});
  net.run_for(5 * kSecond);
  net.store(1, record_of(net, 1, "k", "yours"));
  EXPECT_TRUE(net.run_until(net.now() + kSecond, [&] { return records == 2; }));
}

// Everything arrives, however many there are and however much is lost.
TEST(DhtListen, ThousandRecordsArriveCompletely) {
  VirtualNetwork net(45, {milliseconds(20), milliseconds(60), 0.10, 0.01}, CipherKind::kHash);
  sim::grow(net, 30, 10 * kSecond);
  const Id key = named_key("many");
  std::vector<std::unique_ptr<crypto::Identity>> owners;
  for (size_t i = 0; i < 1000; ++i) {
    const crypto::Identity owner = crypto::Identity::generate(net.rng());
    const WallMs wall = net.wall(1);
    Record record =
        sign_record(owner, "sim", key, wall, wall + 300'000, sim::payload(std::string(100, 'x')));
    net.node(1).start_store(net.now(), wall, std::move(record), net.now() + 30 * kSecond,
                            [](const StoreResult&) {});
    net.collect(1);
    net.run_for(milliseconds(20));
  }
  net.run_for(5 * kSecond);
  std::set<PublicKey> heard;
  bool first = false;
  const Time began = net.now();
  ASSERT_TRUE(net.node(20).start_listen(key, [&](const ListenEvent& event) {
    first = true;
    for (const Record& record : event.changed)
      heard.insert(record.owner);
  }));
  net.collect(20);
  ASSERT_TRUE(net.run_until(net.now() + 10 * kSecond, [&] { return first; }));
  EXPECT_GE(heard.size(), 700U); // replicas lack some of them; digests bring those
  EXPECT_LT(net.now() - began, 4 * kSecond);
  EXPECT_TRUE(net.run_until(net.now() + 5 * kSecond, [&] { return heard.size() == 1000; }));
}

} // namespace
} // namespace lah::dht
