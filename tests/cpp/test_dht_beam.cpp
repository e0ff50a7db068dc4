// Level records, and beam search over them against brute force; no network.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "base/rng.hpp"
#include "dht/beam_query.hpp"

namespace lah::dht {
namespace {

constexpr WallMs kWall = 1'000'000;
const Endpoint kAddress = Endpoint::v4(0x0a000001, 8080);

std::vector<Coordinates> random_experts(Rng& rng, const std::vector<int64_t>& size, size_t count) {
  std::set<Coordinates> experts;
  for (size_t i = 0; i < count; ++i) {
    Coordinates expert;
    for (const int64_t axis : size)
      expert.push_back(static_cast<uint32_t>(rng.below(static_cast<uint64_t>(axis))));
    experts.insert(expert);
  }
  return {experts.begin(), experts.end()};
}

struct Owner {
  PublicKey key{};
  uint64_t schema = 1;
  uint64_t boot_id = 1;
  WallMs expiry_ms = kWall + 1000;
  uint64_t seq = 1;
  std::vector<Coordinates> experts;
  std::map<Id, Buffer> payloads = {};

  void encode() {
    const DeclaredGroup group{schema, experts.empty() ? 0 : experts[0].size(), 0, experts};
    payloads = *encode_levels("ffn", key, boot_id, kAddress, {group});
  }
};

// What a network of these owners holds.
struct World {
  std::vector<Owner> owners;
  std::map<LevelName, LevelCache::Records> read = {};
  size_t reads = 0;

  void add(Owner owner) {
    owner.key[0] = static_cast<uint8_t>(owners.size());
    owner.key.back() = static_cast<uint8_t>(owners.size() * 7);
    owner.encode();
    owners.push_back(std::move(owner));
  }
  LevelCache::Records records(const LevelName& name) const {
    LevelCache::Records records;
    for (const Owner& owner : owners)
      for (size_t index = level_slot(name, owner.key);; index += level_slots(name)) {
        const auto found = owner.payloads.find(level_key(name, index));
        if (found == owner.payloads.end())
          break;
        records[{owner.key, index}] = {owner.seq, owner.expiry_ms, *decode_level(found->second)};
      }
    return records;
  }
  BeamQuery query(BeamRequest request, IsSuspect suspect) {
    return BeamQuery(
        std::move(request),
        [this](const LevelName& name) {
          const auto found = read.find(name);
          return found == read.end() ? nullptr : &found->second;
        },
        std::move(suspect), Id{});
  }
  // Answers everything a query asks for, `batch` tuples at a time.
  BeamResult find(
      BeamRequest request, size_t batch = SIZE_MAX,
      IsSuspect suspect = [](const auto&, uint64_t) { return false; }) {
    EXPECT_FALSE(BeamQuery::check(request));
    BeamQuery beam = query(std::move(request), std::move(suspect));
    for (auto wanted = beam.run(kWall); !wanted.empty(); wanted = beam.run(kWall))
      for (size_t i = 0; i < std::min(batch, wanted.size()); ++i) {
        EXPECT_FALSE(read.contains(wanted[i]));
        read[wanted[i]] = records(wanted[i]);
        beam.forget(wanted[i]);
        ++reads;
      }
    return beam.result(kWall);
  }
};

BeamRequest request_for(const std::vector<int64_t>& size, size_t rows, size_t k, size_t beam) {
  BeamRequest request{*Grid::make("ffn", size, Limits::kBeamCells), {}, rows, k, beam};
  const auto width = std::accumulate(size.begin(), size.end(), int64_t{0});
  request.scores.resize(rows * static_cast<size_t>(width));
  return request;
}

uint64_t flat_of(const std::vector<int64_t>& size, const Coordinates& expert) {
  uint64_t flat = 0;
  for (size_t axis = 0; axis < size.size(); ++axis)
    flat = flat * static_cast<uint64_t>(size[axis]) + expert[axis];
  return flat;
}

// Best first; ties to the lower id.
std::vector<uint64_t> brute_force(const BeamRequest& request, const std::vector<int64_t>& size,
                                  const std::set<Coordinates>& alive, size_t row) {
  const float* scores = request.scores.data() + row * (request.scores.size() / request.rows);
  std::vector<std::pair<float, uint64_t>> order;
  for (const Coordinates& expert : alive) {
    float score = 0;
    size_t begin = 0;
    for (size_t axis = 0; axis < size.size(); ++axis) {
      score = axis == 0 ? scores[expert[0]] : score + scores[begin + expert[axis]];
      begin += static_cast<size_t>(size[axis]);
    }
    if (std::isfinite(score))
      order.push_back({-score, flat_of(size, expert)});
  }
  std::sort(order.begin(), order.end());
  std::vector<uint64_t> best;
  for (size_t i = 0; i < std::min(request.k, order.size()); ++i)
    best.push_back(order[i].second);
  return best;
}

std::vector<uint64_t> chosen(const BeamResult& result, const BeamRequest& request, size_t row) {
  std::vector<uint64_t> ids;
  for (size_t i = row * request.k; i < (row + 1) * request.k; ++i)
    if (result.chosen[i] >= 0)
      ids.push_back(result.experts.at(static_cast<size_t>(result.chosen[i])).flat_id);
  return ids;
}

void draw_scores(Rng& rng, BeamRequest& request) {
  const uint64_t kind = rng.below(3); // continuous, full of ties, with voids
  for (float& score : request.scores) {
    const uint64_t drawn = rng.below(1'000'000);
    score = kind == 1 ? static_cast<float>(drawn % 3) : static_cast<float>(drawn) * 1e-5F - 5;
    if (kind == 2 && drawn % 7 == 0)
      score = drawn % 2 == 0 ? NAN : (drawn % 3 == 0 ? -HUGE_VALF : HUGE_VALF);
  }
}

TEST(DhtBeam, EqualsBruteForceOverTheAliveWheneverTheBeamIsWideEnough) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRng rng(seed);
    std::vector<int64_t> size(2 + rng.below(3));
    for (int64_t& axis : size)
      axis = 1 + static_cast<int64_t>(rng.below(size.size() == 2 ? 40 : 12));
    World world;
    std::set<Coordinates> alive;
    const size_t owners = rng.below(6);
    for (size_t i = 0; i < owners; ++i) {
      Owner owner{
          .schema = 5, .boot_id = i + 1, .experts = random_experts(rng, size, 1 + rng.below(80))};
      const uint64_t fate = rng.below(6); // expired, suspect, of another schema, or alive
      if (fate == 0)
        owner.expiry_ms = kWall;
      else if (fate == 1)
        owner.boot_id = 99;
      else if (fate == 2 && alive.size() > 1)
        owner = {.schema = 4, .experts = {owner.experts[0]}};
      else
        alive.insert(owner.experts.begin(), owner.experts.end());
      world.add(std::move(owner));
    }
    BeamRequest request = request_for(size, 1 + rng.below(5), 1 + rng.below(6), 2000);
    draw_scores(rng, request);
    const BeamResult result = world.find(request, 1 + rng.below(20),
                                         [](const auto&, uint64_t boot) { return boot == 99; });
    ASSERT_EQ(result.unread, 0U);
    for (size_t row = 0; row < request.rows; ++row)
      ASSERT_EQ(chosen(result, request, row), brute_force(request, size, alive, row)) << row;
    EXPECT_TRUE(std::is_sorted(result.experts.begin(), result.experts.end(),
                               [](const auto& a, const auto& b) { return a.flat_id < b.flat_id; }));
  }
}

TEST(DhtBeam, ANarrowBeamLooksBelowTheBestTuplesAlive) {
  World world;
  Owner owner;
  for (uint32_t i = 0; i < 300; ++i)
    owner.experts.push_back({i, i});
  world.add(owner);
  BeamRequest request = request_for({300, 300}, 1, 4, 8);
  for (uint32_t i = 0; i < 300; ++i) {
    request.scores[i] = static_cast<float>(i);
    request.scores[300 + i] = -3 * static_cast<float>(i); // the worst first halves are best
  }
  const BeamResult narrow = world.find(request);
  EXPECT_EQ(chosen(narrow, request, 0),
            (std::vector<uint64_t>{292 * 301, 293 * 301, 294 * 301, 295 * 301}));
  request.beam = 300;
  EXPECT_EQ(chosen(world.find(request), request, 0), (std::vector<uint64_t>{0, 301, 602, 903}));
}

TEST(DhtBeam, ReadsOnlyWhatMayMatter) {
  World world;
  Owner owner;
  for (uint32_t i = 0; i < 90'000; ++i)
    owner.experts.push_back({i / 300, i % 300});
  owner.experts.resize(Limits::kDeclaredExperts);
  world.add(owner);
  BeamRequest request = request_for({300, 300}, 1, 4, 32);
  SeededRng rng(1);
  for (float& score : request.scores)
    score = static_cast<float>(rng.below(1000));
  const BeamResult result = world.find(request, 4);
  EXPECT_EQ(result.experts.size(), 4U);
  EXPECT_LE(world.reads, 16U); // of 219 tuples: nothing below the others can beat the best four
  EXPECT_EQ(result.declared, owner.experts.size());
}

TEST(DhtBeam, ReplicasAreListedByPreferenceAndOtherSchemasAreNot) {
  World world;
  for (size_t i = 0; i < 12; ++i)
    world.add({.experts = {{1, 2}, {3, 4}}});
  world.add({.schema = 2, .experts = {{1, 2}, {5, 5}}});
  BeamRequest request = request_for({400, 400}, 1, 3, 32);
  const BeamResult result = world.find(request);
  ASSERT_EQ(result.experts.size(), 2U);
  EXPECT_EQ(result.other_schemas, 2U);
  EXPECT_EQ(result.declared, 24U);
  EXPECT_EQ(chosen(result, request, 0), (std::vector<uint64_t>{402, 1204}));
  for (const BeamResult::Expert& expert : result.experts) {
    const std::set<uint32_t> others(expert.replicas.begin(), expert.replicas.end());
    EXPECT_EQ(others.size(), Limits::kExpertReplicas);
    EXPECT_FALSE(others.contains(expert.server));
  }
  EXPECT_EQ(result.servers.at(0).endpoint, kAddress);
}

TEST(DhtBeam, WhatAnEarlierIncarnationLeftIsNotAlive) {
  World world;
  world.add({.experts = {{1, 2}, {300, 4}}});
  BeamRequest request = request_for({400, 400}, 1, 2, 32);
  const LevelName row{"ffn", 2, {1}};
  world.read[row] = world.records(row);
  Owner& owner = world.owners[0];
  owner.boot_id = 2;
  owner.seq = 2;
  owner.experts = {{300, 4}};
  const std::map<Id, Buffer> before = owner.payloads;
  owner.encode();
  owner.payloads.insert(before.begin(), before.end()); // no tombstones: it crashed
  const BeamResult result = world.find(request);
  EXPECT_EQ(chosen(result, request, 0), (std::vector<uint64_t>{300 * 400 + 4}));
}

TEST(DhtBeam, WithoutTheRootNobodyIsChosenAndWhatIsMissingIsCounted) {
  World world;
  world.add({.experts = {{1, 2}}});
  BeamQuery query =
      world.query(request_for({400, 400}, 1, 2, 8), [](const auto&, uint64_t) { return false; });
  const std::vector<LevelName> wanted = query.run(kWall);
  ASSERT_EQ(wanted.size(), 9U); // the root, and the beam ahead of it
  EXPECT_EQ(wanted[0], (LevelName{"ffn", 2, {}}));
  EXPECT_EQ(wanted[0], query.root());
  EXPECT_EQ(wanted[1], (LevelName{"ffn", 2, {0}}));
  const BeamResult result = query.result(kWall);
  EXPECT_TRUE(result.experts.empty());
  EXPECT_EQ(result.chosen, (std::vector<int32_t>{-1, -1}));
  EXPECT_EQ(result.unread, 9U);
}

TEST(DhtBeam, RequestsAreChecked) {
  const auto message = [](const BeamRequest& request) {
    return BeamQuery::check(request)->message;
  };
  EXPECT_EQ(message(request_for({400, 400}, 1, 0, 8)), "k_best: expected 1 to 32, got 0");
  EXPECT_EQ(message(request_for({400, 400}, 1, 9, 8)),
            "beam_size: expected k_best to 65536, got 8");
  BeamRequest request = request_for({400, 400}, 2, 4, 8);
  request.scores.pop_back();
  EXPECT_EQ(message(request), "scores: expected 1600 of them, got 1599");
  request.rows = Limits::kBeamScores;
  EXPECT_NE(message(request).find("at most"), std::string::npos);
}

TEST(DhtLevels, NamesNeverShareAKey) {
  std::set<Id> keys;
  const std::vector<LevelName> names{{"ffn", 2, {}},     {"ffn", 3, {}},
                                     {"ffn", 2, {0}},    {"ffn", 3, {0}},
                                     {"ffn", 3, {0, 0}}, {"ffn", 2, {1}},
                                     {"other", 2, {}},   {std::string("ffn\0\0\0\0", 7), 2, {}}};
  for (const LevelName& name : names)
    for (size_t index = 0; index < 40; ++index)
      EXPECT_TRUE(keys.insert(level_key(name, index)).second);
}

TEST(DhtLevels, WhatIsDeclaredIsRead) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SeededRng rng(seed);
    std::vector<int64_t> size(1 + rng.below(4));
    for (int64_t& axis : size)
      axis = 1 + static_cast<int64_t>(rng.below(3000));
    Owner owner{.boot_id = seed, .experts = random_experts(rng, size, 1 + rng.below(1000))};
    World world;
    world.add(owner);
    std::map<Coordinates, std::set<uint32_t>> below;
    for (const Coordinates& expert : owner.experts)
      for (size_t level = 0; level < expert.size(); ++level)
        below[{expert.begin(), expert.begin() + static_cast<ptrdiff_t>(level)}].insert(
            expert[level]);
    size_t payloads = 0;
    for (const auto& [tuple, next] : below) {
      const LevelName name{"ffn", static_cast<uint32_t>(size.size()), tuple};
      std::set<uint32_t> told;
      uint64_t experts = 0;
      for (const auto& [place, held] : world.records(name)) {
        ++payloads;
        EXPECT_EQ(held.level.boot_id, seed);
        EXPECT_EQ(held.level.address.has_value(), tuple.size() + 1 == size.size());
        for (const LevelGroup& group : held.level.groups) {
          experts += group.experts;
          for (const CoordinateRange& range : group.next)
            for (uint32_t i = range.first; i <= range.last; ++i)
              EXPECT_TRUE(told.insert(i).second);
        }
      }
      ASSERT_EQ(told, next);
      EXPECT_EQ(experts, static_cast<uint64_t>(std::count_if(
                             owner.experts.begin(), owner.experts.end(), [&](const auto& expert) {
                               return std::equal(tuple.begin(), tuple.end(), expert.begin());
                             })));
    }
    EXPECT_EQ(payloads, world.owners[0].payloads.size());
    for (const auto& [key, payload] : world.owners[0].payloads)
      EXPECT_LE(payload.size(), Limits::kRecordPayloadBytes);
  }
}

TEST(DhtLevels, OnlyGridsTooLargeForAMapNeedThem) {
  const auto span = [](Coordinates far) {
    return DeclaredGroup{1, far.size(), 0, {Coordinates(far.size(), 0), far}};
  };
  EXPECT_FALSE(needs_levels(span({255, 255}), std::nullopt));
  EXPECT_TRUE(needs_levels(span({255, 256}), std::nullopt));
  EXPECT_TRUE(needs_levels(span({999'999'999, 999'999'999, 999'999'999}), std::nullopt));
  EXPECT_TRUE(needs_levels(span({1, 1}), 65537));
  EXPECT_FALSE(needs_levels(span({255, 256}), 65536));
  EXPECT_FALSE(needs_levels(DeclaredGroup{1, 0, 0, {{}}}, std::nullopt));
}

TEST(DhtLevels, CoordinatesThatNoGridHasAreLeftOut) {
  const DeclaredGroup group{1, 2, 0, {{1, 65536}, {65536, 1}, {2, 65535}}};
  const auto payloads = *encode_levels("ffn", PublicKey{}, 1, kAddress, {group});
  EXPECT_EQ(payloads.size(), 2U);
  EXPECT_TRUE(payloads.contains(level_key({"ffn", 2, {2}}, 0)));
}

TEST(DhtLevels, TooScatteredExpertsAreRefusedByName) {
  DeclaredGroup group{1, 2, 0, {}};
  for (uint32_t i = 0; i < 30'000; ++i)
    group.experts.push_back({7, 2 * i});
  const auto refused = encode_levels("ffn", PublicKey{}, 1, kAddress, {group});
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("'ffn.7'"), std::string::npos);
}

TEST(DhtLevels, HostileRecordsAreRefused) {
  const auto payloads = *encode_levels("ffn", PublicKey{}, 1, kAddress, {{1, 1, 0, {{5}, {9}}}});
  const Buffer good = payloads.begin()->second;
  ASSERT_TRUE(decode_level(good));
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(decode_level(ByteView(good).first(size))) << size;
  SeededRng rng(3);
  for (size_t i = 0; i < 20'000; ++i) {
    Buffer bad = good;
    for (size_t n = 1 + rng.below(3); n > 0; --n)
      bad[rng.below(bad.size())] = static_cast<std::byte>(rng.below(256));
    if (const auto level = decode_level(bad))
      for (const LevelGroup& group : level->groups)
        for (const CoordinateRange& range : group.next) {
          EXPECT_LE(range.first, range.last);
          EXPECT_LT(range.last, Limits::kGridExperts);
        }
  }
}

} // namespace
} // namespace lah::dht
