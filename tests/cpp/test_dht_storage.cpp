// What strangers may fill a node with, and what they cannot push out.
#include <gtest/gtest.h>

#include "dht/storage.hpp"

namespace lah::dht {
namespace {

constexpr WallMs kNow = 1'700'000'000'000;
constexpr size_t kCapacity = size_t{6} << 20; // signatures cost their time

Endpoint stranger(uint32_t subnet) {
  return Endpoint::v4(0x50000000U + (subnet << 8) + 1, 8081);
}

// Distance to the node's id 0 is the key itself.
Id far(uint64_t distance, uint64_t number = 0) {
  return {{distance, number, 0, 0}};
}

struct DhtQuota : testing::Test {
  Verdict put(const crypto::Identity& owner, const Id& key, size_t payload,
              const std::optional<Endpoint>& source, uint64_t seq = 1, WallMs lifetime = 60'000) {
    return storage
        .put(sign_record(owner, "net", key, seq, kNow + lifetime, Buffer(payload)), source, kNow,
             verifier)
        .verdict;
  }
  const crypto::Identity& owner(size_t index) {
    while (owners.size() <= index)
      owners.push_back(crypto::Identity::generate(rng));
    return owners[index];
  }
  // Fills it from as many subnets as that takes; returns how many.
  uint32_t fill(uint64_t distance) {
    uint32_t subnet = 0;
    for (uint64_t i = 0; storage.bytes() + 2000 < kCapacity; ++i) {
      const Verdict verdict = put(owner(subnet), far(distance, i), 700, stranger(subnet));
      if (verdict == Verdict::kFull)
        ++subnet;
      else
        EXPECT_EQ(verdict, Verdict::kStored);
    }
    return subnet + 1;
  }
  void look_like(size_t nodes) {
    std::vector<Contact> closest;
    for (size_t i = 1; i <= 64; ++i)
      closest.push_back({{}, {}, {}, Id{{UINT64_MAX / nodes * i, 0, 0, 0}}});
    storage.set_region(Region(Id{}, closest));
  }

  SeededRng rng{1};
  RecordVerifier verifier{"net"};
  Storage storage{Id{}, kCapacity};
  std::vector<crypto::Identity> owners;
};

TEST_F(DhtQuota, OneKeyHoldsSoManyBytes) {
  size_t stored = 0;
  for (uint32_t i = 0; i < 1000; ++i)
    if (put(owner(i), far(1), 700, stranger(i)) == Verdict::kStored)
      ++stored;
  EXPECT_EQ(stored, Limits::kBytesPerKey / 844);
  EXPECT_EQ(put(owner(0), far(2), 700, stranger(0)), Verdict::kStored);
  EXPECT_EQ(put(owner(0), far(1), 700, stranger(0), 2), Verdict::kStored) << "a refresh has room";
}

TEST_F(DhtQuota, OneKeyHoldsSoManyOwners) {
  for (uint32_t i = 0; i < 3650; ++i) // 144 bytes each: the bytes run out first
    put(owner(i), far(1), 0, stranger(i % 4));
  EXPECT_EQ(storage.records(), std::min(Limits::kRecordsPerKey, Limits::kBytesPerKey / 144));
  EXPECT_EQ(put(owner(3651), far(2), 0, stranger(9)), Verdict::kStored);
}

TEST_F(DhtQuota, OneOwnerHoldsLessInALargeNetwork) {
  const auto store_many = [&](size_t payload) {
    size_t stored = 0;
    for (uint64_t i = 0; i < Limits::kRecordsPerOwnerSmall + 10; ++i)
      stored += put(owner(0), far(1, i), payload, Endpoint::v4(0x0a000001, 1)) == Verdict::kStored;
    storage.expire(kNow + 60'000);
    return stored;
  };
  EXPECT_EQ(store_many(0), Limits::kRecordsPerOwnerSmall);
  EXPECT_EQ(store_many(700), Limits::kBytesPerOwnerSmall / 844);
  look_like(10'000);
  EXPECT_EQ(store_many(0), std::min(Limits::kRecordsPerOwner, Limits::kBytesPerOwner / 144));
  EXPECT_EQ(store_many(700), Limits::kBytesPerOwner / 844);
}

TEST_F(DhtQuota, TombstonesCountAsRecordsDo) {
  look_like(10'000);
  size_t stored = 0;
  for (uint64_t i = 0; i < 1000; ++i)
    stored += put(owner(0), far(1, i), 0, stranger(0)) == Verdict::kStored;
  EXPECT_LE(stored, Limits::kRecordsPerOwner);
}

TEST_F(DhtQuota, OneSubnetHoldsSoManyBytesAndALocalOneMore) {
  for (const bool local : {false, true}) {
    const Endpoint source = local ? Endpoint::v4(0x7f000001, 5) : stranger(0);
    size_t stored = 0;
    for (uint64_t i = 0; i < 2000; ++i)
      stored += put(owner(i % 50), far(1, i), 700, source) == Verdict::kStored;
    EXPECT_EQ(stored, local ? 2000 : Limits::kBytesPerSubnet / 844);
    EXPECT_EQ(put(owner(51), far(1, 9999), 700, stranger(1)), Verdict::kStored);
    storage.expire(kNow + 60'000);
    EXPECT_EQ(storage.bytes(), 0U);
  }
}

TEST_F(DhtQuota, OurOwnRecordsFallUnderNone) {
  look_like(1'000'000);
  for (uint64_t i = 0; i < 600; ++i)
    EXPECT_EQ(put(owner(0), far(UINT64_MAX, i), 700, std::nullopt), Verdict::kStored);
}

TEST_F(DhtQuota, AFullStoreTakesWhatIsCloserAndDropsTheFarthest) {
  fill(1000);
  const size_t held = storage.records();
  EXPECT_EQ(put(owner(500), far(5), 700, stranger(0)), Verdict::kFull) << "its subnet has no room";
  Verdict verdict = Verdict::kStored;
  for (uint64_t i = 0; i < 50; ++i)
    verdict = put(owner(500), far(5, i), 700, stranger(5000));
  EXPECT_EQ(verdict, Verdict::kStored);
  EXPECT_LE(storage.bytes(), kCapacity);
  EXPECT_LE(storage.records(), held + 2);
  EXPECT_EQ(storage.get(far(5, 0), kNow).size(), 1U);
}

// However many names it uses: a subnet cannot push out others once it has as much as they have.
TEST_F(DhtQuota, AFullStoreKeepsWhatItHoldsFromNewcomersWhoAreNotCloser) {
  fill(1000);
  const Id honest = far(2000, 1);
  ASSERT_EQ(put(owner(300), honest, 700, stranger(9999)), Verdict::kStored); // a light subnet's
  size_t stored = 0;
  for (uint64_t i = 0; i < 1500; ++i)
    stored += put(owner(400 + i), far(3000, i), 700, stranger(8888)) == Verdict::kStored;
  EXPECT_LE(stored * 844, Limits::kBytesPerSubnet) << "no more than a fair share";
  EXPECT_EQ(storage.get(honest, kNow).size(), 1U);
  EXPECT_EQ(put(owner(300), honest, 700, stranger(9999), 2), Verdict::kStored) << "a refresh";
  EXPECT_LE(storage.bytes(), kCapacity);
}

TEST_F(DhtQuota, AForgedRecordPushesNothingOut) {
  fill(1000);
  const size_t held = storage.records();
  Record forged = sign_record(owner(300), "net", far(1), 1, kNow + 1000, Buffer(700));
  forged.signature[0] ^= 1;
  for (uint64_t i = 0; i < 10; ++i) {
    forged.key = far(1, i);
    EXPECT_EQ(storage.put(forged, stranger(7000), kNow, verifier).verdict, Verdict::kBadSignature);
  }
  EXPECT_EQ(storage.records(), held);
}

TEST_F(DhtQuota, KeysFarFromOurIdAreOthersBusiness) {
  EXPECT_EQ(put(owner(0), far(UINT64_MAX), 1, stranger(0)), Verdict::kStored) << "nobody is known";
  look_like(40);
  EXPECT_EQ(put(owner(1), far(UINT64_MAX), 1, stranger(0)), Verdict::kStored) << "few are";
  look_like(10'000);
  EXPECT_EQ(put(owner(2), far(UINT64_MAX), 1, stranger(0)), Verdict::kOutOfRegion);
  EXPECT_EQ(put(owner(2), far(UINT64_MAX / 10'000 * 20), 1, stranger(0)), Verdict::kStored);
}

TEST(DhtRegion, OfRealTablesHoldsWhatTheNodeIsAskedToHold) {
  SeededRng rng(3);
  std::vector<Id> ids(4000);
  for (Id& id : ids)
    for (uint64_t& word : id.words)
      word = rng.u64();
  for (size_t round = 0; round < 20; ++round) {
    const Id own = ids[round];
    std::vector<Contact> closest;
    for (const Id& id : ids)
      if (id != own)
        closest.push_back({{}, {}, {}, id});
    std::sort(closest.begin(), closest.end(), [&](const Contact& a, const Contact& b) {
      return distance(own, a.id) < distance(own, b.id);
    });
    closest.resize(Region::kScales);
    Region region(own, closest);
    EXPECT_GT(region.nodes(), 4000U / 5);
    EXPECT_LT(region.nodes(), 4000U * 3 / 2);
    // Sybils that sit around our id do not shrink it to their own neighbourhood.
    std::vector<Contact> crowded(20, Contact{{}, {}, {}, own});
    for (size_t i = 0; i < crowded.size(); ++i)
      crowded[i].id.words[3] ^= i + 1;
    crowded.insert(crowded.end(), closest.begin(), closest.end() - 20);
    const Region attacked(own, crowded);
    for (size_t i = 0; i < 20; ++i) { // a record whose key has us among its closest
      EXPECT_TRUE(region.contains(closest[i].id));
      EXPECT_TRUE(attacked.contains(closest[i].id));
    }
  }
}

TEST(DhtRegion, FewContactsSayNothing) {
  const Region region(Id{}, std::vector<Contact>(Limits::kRegionKnown - 1));
  EXPECT_EQ(region.nodes(), 0U);
  EXPECT_TRUE(region.contains(far(UINT64_MAX)));
}

} // namespace
} // namespace lah::dht
