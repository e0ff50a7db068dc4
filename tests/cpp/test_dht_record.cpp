// Records, where they are kept, and the tokens that open the door.
#include <gtest/gtest.h>

#include "dht/storage.hpp"
#include "dht/token.hpp"

namespace lah::dht {
namespace {

constexpr WallMs kNow = 1'700'000'000'000;
const Endpoint kSource = *Endpoint::parse("192.0.2.1", 7);

struct Fixture : testing::Test {
  Record sign(const crypto::Identity& owner, uint64_t seq, WallMs expiry = kNow + 60'000,
              std::string_view text = "value", std::string_view name = "key") {
    const ByteView bytes = as_bytes(text);
    return sign_record(owner, "net", record_key("test", as_bytes(name)), seq, expiry,
                       Buffer(bytes.begin(), bytes.end()));
  }

  Storage::PutResult put(const Record& record, WallMs wall) {
    return storage.put(record, kSource, wall, verifier);
  }

  SeededRng rng{1};
  crypto::Identity alice = crypto::Identity::generate(rng);
  crypto::Identity bob = crypto::Identity::generate(rng);
  RecordVerifier verifier{"net"};
  Storage storage{Id{}};
};
using DhtRecord = Fixture;
using DhtStorage = Fixture;

TEST_F(DhtRecord, SignatureCoversEveryField) {
  const Record record = sign(alice, 5);
  EXPECT_TRUE(verifier.verify(record));
  EXPECT_TRUE(verifier.verify(record)); // from memory now
  const std::vector<std::function<void(Record&)>> tampers{
      [](Record& r) { r.key.words[0] ^= 1; },
      [&](Record& r) { r.owner = bob.public_key(); },
      [](Record& r) { ++r.seq; },
      [](Record& r) { ++r.expiry_ms; },
      [](Record& r) { r.payload.clear(); },
      [](Record& r) { r.payload.push_back({}); },
      [](Record& r) { r.signature[0] ^= 1; },
  };
  for (const auto& tamper : tampers) {
    Record tampered = record;
    tamper(tampered);
    EXPECT_FALSE(verifier.verify(tampered));
  }
  EXPECT_FALSE(RecordVerifier("other net").verify(record));
}

// What one node of a thread found good is good for the others, and memory of it is bounded.
TEST_F(DhtRecord, VerifiedRecordsAreSharedAndForgotten) {
  VerifiedRecords shared;
  RecordVerifier one("net", &shared);
  RecordVerifier other("other net", &shared);
  const Record record = sign(alice, 5);
  EXPECT_TRUE(one.verify(record));
  EXPECT_FALSE(other.verify(record)); // the network is part of what is signed
  Id digest;
  for (digest.words[0] = 1; digest.words[0] <= Limits::kVerifiedRecords; ++digest.words[0])
    shared.add(digest);
  EXPECT_FALSE(shared.contains(Id{{1}}));
  EXPECT_TRUE(shared.contains(Id{{Limits::kVerifiedRecords}}));
  EXPECT_TRUE(one.verify(record));
}

TEST_F(DhtStorage, KeepsOneRecordPerOwnerAndHigherSeqWins) {
  EXPECT_EQ(put(sign(alice, 5), kNow).verdict, Verdict::kStored);
  EXPECT_EQ(put(sign(bob, 1), kNow).verdict, Verdict::kStored);
  EXPECT_EQ(put(sign(alice, 4), kNow).verdict, Verdict::kStale);
  EXPECT_EQ(put(sign(alice, 4), kNow).seq, 5U);
  EXPECT_EQ(put(sign(alice, 6, kNow + 1000), kNow).verdict, Verdict::kStored);
  EXPECT_EQ(storage.get(sign(alice, 1).key, kNow).size(), 2U);
  EXPECT_TRUE(storage.get(sign(alice, 1).key, kNow + 60'000).empty());
}

TEST_F(DhtStorage, EqualSeqKeepsAndExtendsNothing) {
  const Record record = sign(alice, 5);
  put(record, kNow);
  EXPECT_EQ(put(record, kNow + 1).verdict, Verdict::kKept);
  EXPECT_EQ(put(sign(alice, 5, kNow + 90'000), kNow).verdict, Verdict::kStale);
  EXPECT_EQ(storage.next_expiry(), kNow + 60'000);
}

TEST_F(DhtStorage, RefusesWhatIsExpiredTooLongTooBigOrForged) {
  EXPECT_EQ(put(sign(alice, 1, kNow), kNow).verdict, Verdict::kExpired);
  EXPECT_EQ(put(sign(alice, 1, kNow + 600'001), kNow).verdict, Verdict::kTooLong);
  EXPECT_EQ(put(sign(alice, 1, kNow + 600'000), kNow).verdict, Verdict::kStored);
  EXPECT_EQ(put(sign(alice, 2, kNow + 1, std::string(Limits::kRecordPayloadBytes + 1, 'x')), kNow)
                .verdict,
            Verdict::kTooBig);
  Record forged = sign(alice, 9);
  forged.signature[3] ^= 1;
  EXPECT_EQ(put(forged, kNow).verdict, Verdict::kBadSignature);
  EXPECT_EQ(storage.get(forged.key, kNow).at(0).seq, 1U);
}

TEST_F(DhtStorage, TombstoneIsServedUntilItExpires) {
  put(sign(alice, 1), kNow);
  put(sign(alice, 2, kNow + 5000, ""), kNow);
  ASSERT_EQ(storage.get(sign(alice, 1).key, kNow).size(), 1U);
  EXPECT_TRUE(storage.get(sign(alice, 1).key, kNow)[0].is_tombstone());
  EXPECT_EQ(put(sign(alice, 1), kNow).verdict, Verdict::kStale);
}

TEST_F(DhtStorage, ExpiryFreesEverything) {
  for (int i = 0; i < 50; ++i)
    put(sign(i % 2 == 0 ? alice : bob, 1, kNow + 1000U * static_cast<unsigned>(1 + i % 7), "value",
             "key" + std::to_string(i)),
        kNow);
  EXPECT_EQ(storage.records(), 50U);
  storage.expire(kNow + 3000);
  EXPECT_LT(storage.records(), 50U);
  EXPECT_GT(storage.records(), 0U);
  storage.expire(kNow + 7000);
  EXPECT_EQ(storage.records(), 0U);
  EXPECT_EQ(storage.bytes(), 0U);
  EXPECT_EQ(storage.next_expiry(), UINT64_MAX);
}

TEST_F(DhtStorage, PagesCoverEveryOwnerOnceInOrder) {
  std::vector<crypto::Identity> owners;
  for (int i = 0; i < 20; ++i) {
    owners.push_back(crypto::Identity::generate(rng));
    put(sign(owners.back(), 1), kNow);
  }
  std::vector<PublicKey> seen;
  std::optional<PublicKey> after;
  while (true) {
    const Storage::Page page =
        storage.page(sign(alice, 1).key, after ? &*after : nullptr, kNow, 400, 100);
    for (const Record* record : page.records)
      seen.push_back(record->owner);
    EXPECT_LE(page.records.size(), 3U);
    if (!page.more)
      break;
    after = seen.back();
  }
  EXPECT_EQ(seen.size(), 20U);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
}

TEST_F(DhtStorage, OneOwnerCannotFillIt) {
  size_t full = 0;
  for (size_t i = 0; i <= Limits::kRecordsPerOwnerSmall; ++i) {
    const Id key = record_key("k", std::as_bytes(std::span(&i, 1)));
    const Record record = sign_record(alice, "net", key, 1, kNow + 1000, {});
    full += put(record, kNow).verdict == Verdict::kFull;
  }
  EXPECT_EQ(full, 1U);
  EXPECT_EQ(put(sign(bob, 1), kNow).verdict, Verdict::kStored);
}

TEST(DhtToken, BelongsToAddressAndKeyAndOutlivesOneRotation) {
  SeededRng rng(4);
  TokenIssuer issuer(rng);
  const Endpoint here = *Endpoint::parse("192.0.2.1", 1);
  const Endpoint there = *Endpoint::parse("192.0.2.2", 1);
  const PublicKey key{1};
  const Token token = issuer.issue(here, key);
  EXPECT_TRUE(issuer.accepts(token, here, key));
  EXPECT_FALSE(issuer.accepts(token, there, key));
  EXPECT_FALSE(issuer.accepts(token, here, PublicKey{2}));
  issuer.rotate_if_due(0, rng);
  EXPECT_TRUE(issuer.accepts(token, here, key));
  issuer.rotate_if_due(TokenIssuer::kRotation, rng);
  EXPECT_TRUE(issuer.accepts(token, here, key));
  issuer.rotate_if_due(2 * TokenIssuer::kRotation, rng);
  EXPECT_FALSE(issuer.accepts(token, here, key));
}

} // namespace
} // namespace lah::dht
