// What a node keeps over a restart: the file, and coming back by it.
#include <gtest/gtest.h>

#include "dht/node_state.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

NodeState sample() {
  NodeState state;
  state.identity_seed.emplace().fill(7);
  state.network_id = "net";
  state.seq = UINT64_MAX;
  for (uint8_t i = 1; i <= 3; ++i)
    state.contacts.push_back({Contact::make(PublicKey{i}, {i}, Endpoint::v4(0x08080808U + i, i)),
                              i == 2 ? -1 : milliseconds(i)});
  state.contacts.push_back(
      {Contact::make(PublicKey{9}, {}, *Endpoint::parse("2001:db8::1", 65535)), 0});
  Record record;
  record.owner = PublicKey{4};
  record.seq = 5;
  record.expiry_ms = UINT64_MAX;
  record.payload = Buffer(Limits::kRecordPayloadBytes, std::byte{1});
  record.signature.fill(6);
  state.records = {record, record};
  return state;
}

void expect_equal(const NodeState& a, const NodeState& b) {
  EXPECT_EQ(a.identity_seed, b.identity_seed);
  EXPECT_EQ(a.network_id, b.network_id);
  EXPECT_EQ(a.contacts, b.contacts);
  EXPECT_EQ(a.records, b.records);
  EXPECT_EQ(a.seq, b.seq);
}

// A file whose checksum is right, as only a bug or somebody with the owner's rights would write it.
Buffer sealed(ByteView body) {
  Buffer file = encode_state({});
  file.resize(9);
  append(file, as_bytes(crypto::sha256({body})));
  append(file, body);
  return file;
}

Buffer body_of(const NodeState& state) {
  const Buffer file = encode_state(state);
  return {file.begin() + 41, file.end()};
}

TEST(DhtState, WhatIsSavedIsWhatComesBack) {
  expect_equal(*decode_state(encode_state(sample())), sample());
  expect_equal(*decode_state(encode_state({})), {});
}

TEST(DhtState, IsBoundedWhenWrittenAndWhenRead) {
  NodeState state = sample();
  state.contacts.resize(Limits::kSavedContacts + 9, state.contacts[0]);
  state.records.resize(Limits::kSavedRecords + 9, state.records[0]);
  const Buffer file = encode_state(state);
  EXPECT_LE(file.size(), Limits::kStateBytes);
  const auto loaded = decode_state(file);
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->contacts.size(), Limits::kSavedContacts);
  EXPECT_EQ(loaded->records.size(), Limits::kSavedRecords);

  Buffer body = body_of(state);
  const Buffer more = body_of(sample());
  const size_t head = 2 + std::to_integer<size_t>(more[1]);
  append(body, ByteView(more).subspan(head)); // one contact too many
  EXPECT_FALSE(decode_state(sealed(body)));
  EXPECT_FALSE(decode_state(Buffer(Limits::kStateBytes + 1)));
}

// dht-and-transport §5.3: a tampered file is refused; nothing of it is taken.
TEST(DhtState, EveryDamageIsRefusedAndNamed) {
  const Buffer file = encode_state(sample());
  for (size_t size = 0; size < file.size(); ++size)
    EXPECT_FALSE(decode_state(ByteView(file).first(size))) << size;
  for (size_t byte = 0; byte < file.size(); ++byte) {
    Buffer flipped = file;
    flipped[byte] ^= std::byte{1};
    EXPECT_FALSE(decode_state(flipped)) << byte;
  }
  EXPECT_FALSE(decode_state(as_bytes("\x80\x04\x95 a pickle, say")));
  Buffer later = file;
  later[8] = std::byte{2};
  EXPECT_NE(decode_state(later).error().message.find("version 2"), std::string::npos);
  Buffer torn = file;
  torn.resize(file.size() / 2);
  EXPECT_NE(decode_state(torn).error().message.find("checksum"), std::string::npos);
}

TEST(DhtState, MalformedBodiesWithARightChecksumAreRefused) {
  const Buffer body = body_of(sample());
  EXPECT_TRUE(decode_state(sealed(body)));
  for (size_t size = 0; size < body.size(); ++size)
    if (const auto loaded = decode_state(sealed(ByteView(body).first(size)))) {
      EXPECT_LE(loaded->records.size(), 1U); // cut between two documents
    }
  for (size_t bit = 0; bit < body.size() * 8; ++bit) {
    Buffer flipped = body;
    flipped[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    if (const auto loaded = decode_state(sealed(flipped))) {
      EXPECT_LE(encode_state(*loaded).size(), body.size() + 64);
    }
  }
  Buffer bomb{std::byte{0}, std::byte{5}};
  for (const int byte : {0xdd, 0x0f, 0xff, 0xff, 0xff})
    bomb.push_back(static_cast<std::byte>(byte));
  EXPECT_FALSE(decode_state(sealed(bomb)));
}

} // namespace
} // namespace lah::dht

namespace lah::sim {
namespace {

// The node `index` in its next life: the same identity, what it saved, somewhere else.
size_t reborn(VirtualNetwork& net, size_t index, std::vector<size_t> seeds) {
  const dht::NodeState saved = net.node(index).save_state();
  net.set_up(index, false);
  return net.add({.seeds = std::move(seeds),
                  .identity = net.identity(index),
                  .configure = [&](dht::NodeConfig& config) { config.state = saved; }});
}

TEST(SimState, ANodeComesBackInOneRoundTripThoughEverySeedIsDead) {
  VirtualNetwork net(71, Faults::constant_rtt(milliseconds(100)), CipherKind::kHash);
  grow(net, 60, 10 * kSecond);
  net.set_up(0, false);
  net.set_up(1, false);
  const size_t node = reborn(net, 30, {0, 1});
  const Time began = net.now();
  EXPECT_TRUE(net.run_until(began + kSecond, [&] { return net.node(node).ready(); }));
  EXPECT_LE(net.now() - began, milliseconds(101));
  EXPECT_GE(net.node(node).table().size(), 1U);
  net.run_for(2 * kSecond);
  EXPECT_GE(net.node(node).table().size(), 30U);
  const dht::Record record = record_of(net, node, "warm", "value");
  EXPECT_GE(net.store(node, record).replicas, 8U);
  EXPECT_TRUE(holds(net.get(12, record.key), record));
}

TEST(SimState, AnOperationStartedAtOnceWaitsForTheFirstContacts) {
  VirtualNetwork net(72, Faults::constant_rtt(milliseconds(100)), CipherKind::kHash);
  grow(net, 60, 10 * kSecond);
  const dht::Record record = record_of(net, 5, "known", "value");
  net.store(5, record);
  const size_t node = reborn(net, 30, {});
  const Time began = net.now();
  EXPECT_TRUE(holds(net.get(node, record.key), record));
  EXPECT_LE(net.now() - began, milliseconds(450));
}

TEST(SimState, SavedContactsThatAreAllDeadHoldUpNeitherSeedsNorALoneNode) {
  VirtualNetwork net(73, Faults::constant_rtt(milliseconds(100)), CipherKind::kHash);
  grow(net, 20, 10 * kSecond);
  const dht::NodeState saved = net.node(3).save_state();
  for (size_t i = 0; i < 20; ++i)
    net.set_up(i, false);
  const size_t seed = net.add({});
  const auto with_state = [&](dht::NodeConfig& config) { config.state = saved; };
  const size_t seeded = net.add({.seeds = {seed}, .configure = with_state});
  const size_t lone = net.add({.configure = with_state});
  EXPECT_TRUE(net.run_until(net.now() + kSecond, [&] { return net.node(seeded).ready(); }));
  EXPECT_TRUE(net.run_until(net.now() + 3 * kSecond, [&] { return net.node(lone).ready(); }));
  const dht::Record record = record_of(net, lone, "alone", "value");
  net.store(lone, record);
  EXPECT_TRUE(holds(net.get(lone, record.key), record));
  net.set_up(7, true); // the way back stays known
  EXPECT_TRUE(
      net.run_until(net.now() + 120 * kSecond, [&] { return net.node(lone).table().size() > 0; }));
}

TEST(SimState, OwnRecordsAndTheSequenceSurvive) {
  VirtualNetwork net(74, {}, CipherKind::kHash);
  net.add({});
  const WallMs ahead = net.wall(0) + 3'600'000; // the clock will have gone back
  const dht::Record record = record_of(net, 0, "mine", "value", 300'000, ahead);
  net.store(0, record);
  const size_t node = reborn(net, 0, {});
  net.run_for(kSecond);
  EXPECT_TRUE(holds(net.get(node, record.key), record));
  EXPECT_EQ(net.node(node).next_seq(), ahead + 1);
}

TEST(SimState, ExpiredForeignAndForgedRecordsStayBehind) {
  VirtualNetwork net(75, {}, CipherKind::kHash);
  grow(net, 3, kSecond);
  dht::NodeState state = net.node(1).save_state();
  dht::Record forged = record_of(net, 1, "forged", "value");
  forged.payload[0] ^= std::byte{1};
  state.records = {record_of(net, 1, "expired", "value", 10), forged,
                   record_of(net, 2, "foreign", "value")};
  net.set_up(1, false);
  const size_t node =
      net.add({.identity = net.identity(1),
               .configure = [&](dht::NodeConfig& config) { config.state = state; }});
  net.run_for(kSecond);
  EXPECT_EQ(net.node(node).storage().records(), 0U);
}

TEST(SimState, TheNearestAndTheFastestAreSaved) {
  VirtualNetwork net(76, Faults::geographic(), CipherKind::kHash);
  for (size_t i = 0; i < 400; ++i)
    net.add({});
  net.settle();
  net.acquaint(9);
  const dht::NodeState state = net.node(9).save_state();
  ASSERT_GT(state.contacts.size(), 100U);
  ASSERT_LE(state.contacts.size(), Limits::kSavedContacts);
  const std::vector<dht::Contact> nearest = net.node(9).table().closest(net.node(9).id(), 16);
  for (size_t i = 0; i < nearest.size(); ++i)
    EXPECT_EQ(state.contacts[i].contact, nearest[i]);
  for (size_t i = 17; i < state.contacts.size(); ++i)
    EXPECT_LE(state.contacts[i - 1].rtt, state.contacts[i].rtt);
}

} // namespace
} // namespace lah::sim
