// One node, driven by hand: what it answers, whom it believes, when it asks again.
#include <gtest/gtest.h>

#include "dht/node.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

constexpr WallMs kWall = 1'700'000'000'000;
const Endpoint kPeerAddress = *Endpoint::parse("192.0.2.1", 7);

struct NodeTest : testing::Test {
  explicit NodeTest(std::vector<Endpoint> seeds = {})
      : node({"net", std::move(seeds), false}, identity, cipher, rng) {}

  // The peer sends a plaintext; what the node sends back to it, opened.
  std::vector<Buffer> say(ByteView plaintext) {
    node.on_datagram(now, kWall, kPeerAddress, *peer_cipher.seal(identity.public_key(), plaintext));
    return heard();
  }

  std::vector<Buffer> heard() {
    std::vector<Buffer> opened;
    for (const Datagram& datagram : node.take_datagrams()) {
      sizes.push_back(datagram.bytes.size());
      const auto packet = crypto::parse_packet(datagram.bytes);
      EXPECT_EQ(datagram.to, kPeerAddress);
      EXPECT_TRUE(packet);
      if (packet->kind == crypto::PacketKind::kHello) {
        last_hello = datagram.bytes;
        continue;
      }
      auto plaintext = peer_cipher.open(*packet);
      EXPECT_TRUE(plaintext);
      opened.push_back(std::move(*plaintext));
    }
    return opened;
  }

  template <class Message> Message only(const std::vector<Buffer>& heard) {
    EXPECT_EQ(heard.size(), 1U);
    auto decoded = decode(heard.at(0));
    EXPECT_TRUE(decoded);
    return std::get<Message>(*decoded);
  }

  void advance(Duration duration) {
    now += duration;
    node.on_timer(now, kWall);
  }

  SeededRng rng{1};
  crypto::Identity identity = crypto::Identity::generate(rng);
  crypto::Identity peer = crypto::Identity::generate(rng);
  SealedCipher cipher{identity, "net", rng};
  SealedCipher peer_cipher{peer, "net", rng};
  Node node;
  Time now = 0;
  std::vector<size_t> sizes;
  Buffer last_hello;
};

const Header kFromClient{42, true, {}, {}}; // a client is not greeted, so only the answer comes

TEST_F(NodeTest, AnswersAPingWithTheAddressItSaw) {
  const auto reply = only<ReplyMessage>(say(encode(kFromClient, Request(PingRequest{}))));
  EXPECT_EQ(reply.header.txid, 42U);
  EXPECT_EQ(std::get<PingReply>(reply.body).observed, kPeerAddress);
}

// dht-and-transport §5.2: an error within one round trip, not silence.
TEST_F(NodeTest, AnswersWhatItDoesNotKnowWithAnError) {
  wire::Writer out;
  out.array(7).u64(30).u64(9).u64(1).bin(as_bytes(PuzzleNonce{})).bin({}).u64(kWall).bin({});
  const auto reply = only<ReplyMessage>(say(out.view()));
  EXPECT_EQ(reply.header.txid, 9U);
  EXPECT_EQ(std::get<ErrorReply>(reply.body).code, ErrorCode::kProtocol);
}

TEST_F(NodeTest, CountsRubbishAndSaysNothing) {
  EXPECT_TRUE(say(as_bytes("rubbish")).empty());
  node.on_datagram(now, kWall, kPeerAddress, Buffer(5));
  node.on_datagram(now, kWall, kPeerAddress, Buffer(1200, std::byte{1}));
  EXPECT_TRUE(heard().empty());
  EXPECT_EQ(node.status().bad_packets, 3U);
}

TEST_F(NodeTest, AStrangerEntersTheTableOnlyByAnsweringAQuestion) {
  const Header stranger{1, false, {}, {}};
  const auto sent = say(encode(stranger, Request(PingRequest{})));
  ASSERT_EQ(sent.size(), 2U); // the answer, and a PING of our own
  EXPECT_EQ(node.table().size(), 0U);
  EXPECT_EQ(say(encode(stranger, Request(PingRequest{}))).size(), 1U); // asked once, not each time

  const auto decoded = decode(sent[1]);
  const auto& question = std::get<RequestMessage>(*decoded);
  Header forged{question.header.txid + 1, false, {}, {}};
  say(encode(forged, Reply(PingReply{kPeerAddress})));
  EXPECT_EQ(node.table().size(), 0U);
  forged.txid = question.header.txid;
  say(encode(forged, Reply(PingReply{kPeerAddress})));
  EXPECT_EQ(node.table().size(), 1U);
}

TEST_F(NodeTest, AnswersABoundedNumberOfHellos) {
  std::array<uint8_t, 24> nonce{};
  const Buffer hello = peer_cipher.hello(nonce);
  const auto flood = [&](size_t count) {
    size_t answers = 0;
    for (size_t i = 0; i < count; ++i) {
      advance(kMillisecond / 10);
      node.on_datagram(now, kWall, kPeerAddress, hello);
      answers += node.take_datagrams().size();
    }
    return answers;
  };
  EXPECT_EQ(flood(1000), Limits::kSubnetNewcomersBurst + 3); // and what a tenth of a second adds
  EXPECT_GT(node.status().newcomers_refused, 700U);
  now += kSecond;
  EXPECT_EQ(flood(1), 1U);
}

// Packets of fresh keys, each properly sealed, and a peer that is known: it is answered at once.
TEST_F(NodeTest, AKnownPeerIsAnsweredBeforeAFloodOfFreshKeys) {
  const Buffer ping = encode(kFromClient, Request(PingRequest{}));
  only<ReplyMessage>(say(ping));
  std::vector<Buffer> flood;
  for (size_t i = 0; i < 300; ++i) {
    const auto stranger = crypto::Identity::generate(rng);
    SealedCipher stranger_cipher(stranger, "net", rng);
    flood.push_back(*stranger_cipher.seal(identity.public_key(), ping));
  }
  now += kMillisecond;
  for (uint32_t i = 0; i < flood.size(); ++i)
    node.on_datagram(now, kWall, Endpoint::v4(0x50000001U + (i << 8), 1), flood[i]);
  EXPECT_EQ(node.take_datagrams().size(), Limits::kNewcomersPerTurn);
  only<ReplyMessage>(say(ping));
  EXPECT_EQ(node.next_deadline(), now) << "the others wait for their turn";
  size_t answered = 0;
  for (int turn = 0; turn < 200; ++turn) {
    node.on_timer(now, kWall);
    answered += node.take_datagrams().size();
  }
  EXPECT_EQ(answered, Limits::kNewcomersWaiting);
}

TEST_F(NodeTest, ATokenFromAnotherAddressStoresNothing) {
  const auto granted = only<ReplyMessage>(say(encode(kFromClient, Request(PingRequest{}))));
  Header header = kFromClient;
  header.token = granted.header.token;
  const Record record = sign_record(peer, "net", Id{}, 1, kWall + 1000, Buffer(3));
  const Buffer store =
      *peer_cipher.seal(identity.public_key(), encode(header, Request(StoreRequest{{record}})));
  node.on_datagram(now, kWall, *Endpoint::parse("192.0.2.99", 7), store);
  EXPECT_EQ(node.storage().records(), 0U);
  node.on_datagram(now, kWall, kPeerAddress, store);
  EXPECT_EQ(node.storage().records(), 1U);
}

struct JoiningNodeTest : NodeTest {
  JoiningNodeTest() : NodeTest({kPeerAddress}) {}

  static constexpr Duration kRtt = milliseconds(50);
  static constexpr Duration kRto = 3 * kRtt; // after one sample

  // Answers HELLO; what the node asks then.
  RequestMessage first_question() {
    advance(0);
    EXPECT_TRUE(heard().empty());
    now += kRtt;
    node.on_datagram(now, kWall, kPeerAddress,
                     peer_cipher.hello_reply(*crypto::parse_packet(last_hello)));
    return only<RequestMessage>(heard());
  }
};

TEST_F(JoiningNodeTest, PadsFindUntilItMayExpectALongAnswer) {
  const RequestMessage question = first_question();
  EXPECT_TRUE(std::holds_alternative<FindRequest>(question.body));
  EXPECT_GE(sizes.back(), Limits::kUnprovenRequest);
}

TEST_F(JoiningNodeTest, RepeatsASilentRequestOnceWithTheSameTxid) {
  const uint64_t txid = first_question().header.txid;
  advance(kRto - 1);
  EXPECT_TRUE(heard().empty());
  advance(1);
  EXPECT_EQ(only<RequestMessage>(heard()).header.txid, txid);
  advance(3 * kRto);
  for (const Buffer& later : heard())
    EXPECT_NE(std::get<RequestMessage>(*decode(later)).header.txid, txid);
  EXPECT_EQ(node.status().requests_failed, 1U);
}

TEST_F(JoiningNodeTest, WithASilentSeedOperationsEndOnTheirOwn) {
  std::optional<GetResult> result;
  node.start_get(now, kWall, Id{}, kNever, [&](GetResult got) { result = std::move(got); });
  for (int i = 0; i < 20 && !result; ++i) {
    advance(milliseconds(100));
    node.take_datagrams();
  }
  ASSERT_TRUE(result);
  EXPECT_EQ(result->answered, 0U);
  EXPECT_TRUE(node.status().isolated);
}

TEST_F(JoiningNodeTest, DeadlinesEndOperationsAsIncomplete) {
  std::optional<GetResult> result;
  node.start_get(now, kWall, Id{}, milliseconds(50),
                 [&](GetResult got) { result = std::move(got); });
  EXPECT_LE(node.next_deadline(), milliseconds(50));
  advance(milliseconds(50));
  ASSERT_TRUE(result);
  EXPECT_FALSE(result->complete);
}

TEST_F(JoiningNodeTest, ASeedThatIsTheNodeItselfIsForgotten) {
  advance(0);
  EXPECT_TRUE(heard().empty());
  node.on_datagram(now, kWall, kPeerAddress, cipher.hello_reply(*crypto::parse_packet(last_hello)));
  EXPECT_TRUE(node.ready());
  EXPECT_EQ(node.table().size(), 0U);
}

} // namespace
} // namespace lah::dht
