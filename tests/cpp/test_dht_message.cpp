// Messages: what goes out comes back the same, fits a datagram, and nothing hostile gets in.
#include <gtest/gtest.h>

#include "crypto/sealed_packet.hpp"
#include "dht/message.hpp"
#include "dht/responder.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

constexpr size_t kPlaintextMax = Limits::kDatagramBytes - crypto::kPacketOverhead;
constexpr WallMs kNow = 1'700'000'000'000;

Contact contact(uint8_t n, const std::string& ip) {
  return Contact::make(PublicKey{n}, {}, *Endpoint::parse(ip, 65535));
}

Record record(size_t payload, uint8_t owner = 1) {
  Record made;
  made.key.words = {1, 2, 3, UINT64_MAX};
  made.owner = PublicKey{owner};
  made.seq = UINT64_MAX;
  made.expiry_ms = UINT64_MAX;
  made.payload = Buffer(payload, std::byte{7});
  made.signature.fill(9);
  return made;
}

const Header kHeader{UINT64_MAX, true, {1, 2, 3, 4, 5, 6, 7, 8}, Token{5}, UINT64_MAX};

template <class Body, class MessageType> Body through_the_wire(const Body& body) {
  const Buffer bytes = encode(kHeader, body);
  EXPECT_LE(bytes.size(), kPlaintextMax);
  auto decoded = decode(bytes);
  EXPECT_TRUE(decoded);
  auto& message = std::get<MessageType>(*decoded);
  EXPECT_EQ(message.header.txid, kHeader.txid);
  EXPECT_TRUE(message.header.client_mode);
  EXPECT_EQ(message.header.puzzle, kHeader.puzzle);
  EXPECT_EQ(message.header.token, kHeader.token);
  EXPECT_EQ(message.header.wall_ms, kHeader.wall_ms);
  EXPECT_TRUE(message.header.certificate.empty());
  return std::move(message.body);
}

Request round_trip(const Request& body) {
  return through_the_wire<Request, RequestMessage>(body);
}
Reply round_trip(const Reply& body) {
  return through_the_wire<Reply, ReplyMessage>(body);
}

TEST(DhtMessage, RequestsRoundTripInTheLargestForm) {
  EXPECT_TRUE(std::holds_alternative<PingRequest>(round_trip(Request(PingRequest{}))));

  FindRequest find{{}, true, 100};
  for (uint64_t i = 0; i < Limits::kFindKeys; ++i)
    find.keys.push_back(Id{{i, UINT64_MAX, 0, i}});
  const auto found = std::get<FindRequest>(round_trip(Request(find)));
  EXPECT_EQ(found.keys, find.keys);
  EXPECT_TRUE(found.want_records);
  EXPECT_EQ(found.padding, 100U);

  const StoreRequest store{{record(Limits::kRecordPayloadBytes)}};
  EXPECT_EQ(std::get<StoreRequest>(round_trip(Request(store))).records, store.records);

  const PageRequest page{Id{{1, 2, 3, 4}}, PublicKey{8}};
  EXPECT_EQ(std::get<PageRequest>(round_trip(Request(page))).after, page.after);
  EXPECT_EQ(std::get<PageRequest>(round_trip(Request(PageRequest{page.key, {}}))).after,
            std::nullopt);
}

TEST(DhtMessage, ObservationsNameATargetWhenTheyArePassedOnAndOnlyThen) {
  using Step = ObserveRequest::Step;
  const Contact target = contact(3, "2001:db8::1");
  const auto passed = std::get<ObserveRequest>(
      round_trip(Request(ObserveRequest{Step::kPassOn, UINT64_MAX, target, 9})));
  EXPECT_EQ(passed.step, Step::kPassOn);
  EXPECT_EQ(passed.nonce, UINT64_MAX);
  EXPECT_EQ(passed.target, target);
  EXPECT_EQ(passed.padding, 9U);
  for (const Step step : {Step::kAsk, Step::kDialBack}) {
    EXPECT_TRUE(decode(encode(kHeader, Request(ObserveRequest{step, 1, {}, 0}))));
    EXPECT_FALSE(decode(encode(kHeader, Request(ObserveRequest{step, 1, target, 0}))));
  }
  EXPECT_FALSE(decode(encode(kHeader, Request(ObserveRequest{Step::kPassOn, 1, {}, 0}))));
  EXPECT_EQ(std::get<ObserveReply>(round_trip(Reply(ObserveReply{2}))).others, 2U);
}

TEST(DhtMessage, RepliesRoundTripInTheLargestForm) {
  const Endpoint v6 = *Endpoint::parse("2001:db8::1", 9);
  EXPECT_EQ(std::get<PingReply>(round_trip(Reply(PingReply{v6}))).observed, v6);

  FindReply::Entry entry;
  for (uint8_t i = 0; i < Limits::kFindContacts; ++i)
    entry.contacts.push_back(contact(i, "2001:db8::1"));
  entry.more = true;
  const auto find = std::get<FindReply>(round_trip(Reply(FindReply{v6, {entry}})));
  EXPECT_EQ(find.entries.at(0).contacts, entry.contacts);
  EXPECT_TRUE(find.entries.at(0).more);

  PageReply page{{record(Limits::kRecordPayloadBytes)}, true};
  const auto paged = std::get<PageReply>(round_trip(Reply(page)));
  page.records[0].key = Id{}; // the asker knows it
  EXPECT_EQ(paged.records, page.records);

  const StoreReply store{{{Verdict::kStale, 77}, {Verdict::kStored, UINT64_MAX}}};
  const auto stored = std::get<StoreReply>(round_trip(Reply(store)));
  EXPECT_EQ(stored.outcomes.at(0).verdict, Verdict::kStale);
  EXPECT_EQ(stored.outcomes.at(1).seq, UINT64_MAX);

  const auto error = std::get<ErrorReply>(round_trip(Reply(ErrorReply{ErrorCode::kOverloaded})));
  EXPECT_EQ(error.code, ErrorCode::kOverloaded);
}

TEST(DhtMessage, TrailingElementsOfANewerPeerAreIgnored) {
  wire::Writer out;
  out.array(9).u64(1).u64(5).u64(0).bin(as_bytes(PuzzleNonce{})).bin({}).u64(kNow).bin({});
  out.str("new").nil();
  const auto decoded = decode(out.view());
  ASSERT_TRUE(decoded);
  EXPECT_TRUE(std::holds_alternative<RequestMessage>(*decoded));
}

TEST(DhtMessage, AnUnknownRequestKeepsItsHeader) {
  wire::Writer out;
  out.array(8).u64(23).u64(5).u64(0).bin(as_bytes(PuzzleNonce{})).bin({}).u64(kNow).bin({});
  out.str("from the future");
  const auto decoded = decode(out.view());
  ASSERT_TRUE(decoded);
  EXPECT_EQ(std::get<UnknownRequest>(*decoded).header.txid, 5U);
}

TEST(DhtMessage, ACertificateTravelsInTheHeaderUpToItsLimit) {
  Header header = kHeader;
  header.certificate = Buffer(Limits::kCertificateBytes, std::byte{3});
  FindRequest find{std::vector<Id>(Limits::kFindKeys), true};
  const Buffer bytes = encode(header, Request(find));
  EXPECT_LE(bytes.size(), kPlaintextMax);
  const auto decoded = decode(bytes);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(std::get<RequestMessage>(*decoded).header.certificate, header.certificate);
  header.certificate.push_back({});
  EXPECT_FALSE(decode(encode(header, Request(find))));
}

// dht-and-transport §5.16.
TEST(DhtMessage, MsgpackBombsAreRefused) {
  const auto bytes = [](std::initializer_list<int> values) {
    Buffer out;
    for (const int value : values)
      out.push_back(static_cast<std::byte>(value));
    return out;
  };
  EXPECT_FALSE(decode(bytes({0xdd, 0x0f, 0xff, 0xff, 0xff}))); // 268 million elements announced
  Buffer nested;
  for (int level = 0; level < 240; ++level)
    append(nested, bytes({0xdd, 0x00, 0x00, 0x00, 0x01}));
  EXPECT_FALSE(decode(nested));
  EXPECT_FALSE(decode(bytes({0xc6, 0xff, 0xff, 0xff, 0xff}))); // a 4 GiB blob announced
  EXPECT_FALSE(decode(bytes({0xdf, 0xff, 0xff, 0xff, 0xff}))); // a map
  EXPECT_FALSE(decode({}));
}

TEST(DhtMessage, EveryTruncationAndBitFlipIsHarmless) {
  FindReply::Entry entry{{contact(1, "192.0.2.1"), contact(2, "2001:db8::2")}, {record(50)}, true};
  const std::vector<Buffer> documents{
      encode(kHeader, Reply(FindReply{*Endpoint::parse("192.0.2.9", 1), {entry}})),
      encode(kHeader, Request(StoreRequest{{record(40)}})),
      encode(kHeader, Request(PageRequest{Id{}, PublicKey{}})),
  };
  for (const Buffer& document : documents) {
    for (size_t size = 0; size < document.size(); ++size)
      EXPECT_FALSE(decode(ByteView(document).first(size)));
    for (size_t bit = 0; bit < document.size() * 8; ++bit) {
      Buffer flipped = document;
      flipped[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      if (const auto decoded = decode(flipped)) { // a changed value is fine, a wrong shape is not
        if (const auto* message = std::get_if<ReplyMessage>(&*decoded)) {
          EXPECT_LE(encode(message->header, message->body).size(), document.size() + 16);
        }
      }
    }
  }
}

TEST(DhtMessage, ContactsOfSeveralKeysTravelOnce) {
  FindReply find{*Endpoint::parse("192.0.2.9", 1), {}};
  for (uint8_t first = 0; first < Limits::kFindKeys; ++first) {
    FindReply::Entry entry;
    for (uint8_t i = 0; i < 10; ++i)
      entry.contacts.push_back(contact(static_cast<uint8_t>(1 + (first + i) % 14), "192.0.2.1"));
    find.entries.push_back(entry);
  }
  const auto decoded = std::get<FindReply>(round_trip(Reply(find)));
  for (size_t i = 0; i < Limits::kFindKeys; ++i)
    EXPECT_EQ(decoded.entries.at(i).contacts, find.entries[i].contacts);
  EXPECT_LT(encode(kHeader, Reply(find)).size(), kFindReplyWireBytes + 14 * 48 + 8 * (10 + 8) + 1);
}

TEST(DhtMessage, AContactThatIsNotThereIsRefused) {
  wire::Writer out;
  out.array(10).u64(0x42).u64(1).u64(0).bin(as_bytes(PuzzleNonce{})).bin({}).u64(1).bin({});
  out.bin(encode_endpoint(*Endpoint::parse("192.0.2.9", 1)));
  out.array(1).bin(encode_contact(contact(1, "192.0.2.1")));
  out.array(1).array(3).array(1).u64(0);
  Buffer reply = out.take();
  const size_t place = reply.size() - 1;
  append(reply, as_bytes(std::array<uint8_t, 2>{0x90, 0xc2})); // no records, no more
  ASSERT_TRUE(decode(reply));
  reply[place] = std::byte{1};
  EXPECT_FALSE(decode(reply));
}

TEST(DhtMessage, RepliesNobodyAwaitsStayUnread) {
  const Buffer reply = encode(kHeader, Reply(PingReply{*Endpoint::parse("192.0.2.9", 1)}));
  const auto body = [&](bool awaited) {
    const auto decoded = decode(reply, [&](uint64_t txid) {
      EXPECT_EQ(txid, kHeader.txid);
      return awaited;
    });
    return std::get<ReplyMessage>(*decoded).body;
  };
  EXPECT_TRUE(std::holds_alternative<PingReply>(body(true)));
  EXPECT_TRUE(std::holds_alternative<ErrorReply>(body(false)));
  const Buffer request = encode(kHeader, Request(PingRequest{}));
  EXPECT_TRUE(decode(request, [](uint64_t) { return false; }));
}

TEST(DhtMessage, TooManyElementsAreRefused) {
  StoreRequest store;
  for (size_t i = 0; i <= Limits::kStoreBatch; ++i)
    store.records.push_back(record(1));
  EXPECT_FALSE(decode(encode(kHeader, Request(store))));
  FindRequest find;
  EXPECT_FALSE(decode(encode(kHeader, Request(find)))); // no key
  find.keys.resize(Limits::kFindKeys + 1);
  EXPECT_FALSE(decode(encode(kHeader, Request(find))));
  EXPECT_FALSE(
      decode(encode(kHeader, Request(StoreRequest{{record(Limits::kRecordPayloadBytes + 1)}}))));
}

struct ResponderTest : testing::Test {
  ResponderTest() {
    for (uint8_t i = 1; i <= 40; ++i)
      table.confirm(contact(i, "2001:db8:" + std::to_string(i) + "::1"), kMillisecond,
                    0); // a /48 each
    for (int i = 0; i < 12; ++i) {
      const auto owner = crypto::Identity::generate(rng);
      storage.put(sign_record(owner, "net", key, 1, kNow + 1000, Buffer(300)), std::nullopt, kNow,
                  verifier);
    }
  }

  size_t reply_bytes(const Reply& reply) {
    return encode(kHeader, reply).size() + crypto::kPacketOverhead;
  }

  SeededRng rng{1};
  Storage storage{Id{}};
  RoutingTable table{Id{}};
  RecordVerifier verifier{"net"};
  Admission admission{{}, "net"};
  Responder responder{Id{}, storage, table, verifier, admission};
  Id key{{1, 2, 3, 4}};
  Contact asker = contact(99, "192.0.2.1");
};

TEST_F(ResponderTest, RepliesFitADatagramAndUseIt) {
  for (const size_t keys : {1U, 2U, 8U})
    for (const bool records : {false, true}) {
      FindRequest find{std::vector<Id>(keys, key), records};
      const Reply reply = responder.answer({asker, true}, find, 200, kNow);
      EXPECT_LE(reply_bytes(reply), Limits::kDatagramBytes);
      EXPECT_EQ(std::get<FindReply>(reply).entries.size(), keys);
      if (keys == 1) {
        EXPECT_GE(std::get<FindReply>(reply).entries[0].contacts.size(), records ? 8U : 16U);
      }
    }
  const Reply page = responder.answer({asker, true}, PageRequest{key, {}}, 200, kNow);
  EXPECT_LE(reply_bytes(page), Limits::kDatagramBytes);
  EXPECT_GE(std::get<PageReply>(page).records.size(), 2U);
  EXPECT_TRUE(std::get<PageReply>(page).more);
}

TEST_F(ResponderTest, AnUnprovenAddressGetsAtMostThreeTimesWhatItSent) {
  for (const size_t request : {100U, 150U, 250U, 400U})
    for (const Request& body :
         {Request(FindRequest{{key}, true}), Request(FindRequest{{key}, false}),
          Request(PageRequest{key, {}})}) {
      const Reply reply = responder.answer({asker, false}, body, request, kNow);
      EXPECT_LE(reply_bytes(reply), Limits::kAmplification * request);
    }
}

TEST_F(ResponderTest, StoresNothingWithoutAToken) {
  const auto owner = crypto::Identity::generate(rng);
  const StoreRequest store{{sign_record(owner, "net", Id{}, 1, kNow + 1000, Buffer(3))}};
  const auto verdict = [&](bool proven) {
    const Reply reply = responder.answer({asker, proven}, store, 300, kNow);
    return std::get<StoreReply>(reply).outcomes.at(0).verdict;
  };
  EXPECT_EQ(verdict(false), Verdict::kBadToken);
  EXPECT_TRUE(storage.get(Id{}, kNow).empty());
  EXPECT_EQ(verdict(true), Verdict::kStored);
}

} // namespace
} // namespace lah::dht
