// Declarations: what servers say in the DHT, byte by byte.
#include <gtest/gtest.h>

#include <set>

#include "dht/alive_map.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

ExpertUid uid(std::string_view text) {
  return *parse_uid(text);
}

// --- names ---------------------------------------------------------------------------------------

TEST(DhtUid, SplitsPrefixAndCoordinates) {
  EXPECT_EQ(uid("ffn.3.17"), (ExpertUid{"ffn", {3, 17}}));
  EXPECT_EQ(uid("expert0"), (ExpertUid{"expert0", {}}));
  EXPECT_EQ(uid("a.b.0"), (ExpertUid{"a.b", {0}}));
  EXPECT_EQ(uid("7.8"), (ExpertUid{"7", {8}}));
  EXPECT_EQ(uid(".5"), (ExpertUid{"", {5}}));
  EXPECT_EQ(uid("a.1.b"), (ExpertUid{"a.1.b", {}}));
  EXPECT_EQ(uid("a.1..2"), (ExpertUid{"a.1.", {2}}));
  for (const char* text : {"ffn.3.17", "expert0", "a.b.0", "7.8", ".5", "a.1.b"})
    EXPECT_EQ(format_uid(uid(text).prefix, uid(text).coordinates), text);
}

TEST(DhtUid, RefusesWhatTwoNodesCouldReadDifferently) {
  for (const std::string text : {"", "ffn.01", "ffn.00", "ffn.9999999999", "a.1.2.3.4.5.6.7.8.9"})
    EXPECT_FALSE(parse_uid(text)) << text;
  EXPECT_FALSE(parse_uid(std::string(Limits::kUidBytes + 1, 'x')));
  EXPECT_TRUE(parse_uid(std::string(Limits::kUidBytes, 'x')));
}

// --- payloads ------------------------------------------------------------------------------------

std::vector<Coordinates> all_of(const std::vector<Buffer>& parts) {
  std::vector<Coordinates> found;
  for (const Buffer& part : parts) {
    EXPECT_LE(part.size(), Limits::kRecordPayloadBytes);
    const auto declaration = decode_declaration(part);
    EXPECT_TRUE(declaration);
    EXPECT_EQ(declaration->parts, parts.size());
    EXPECT_EQ(declaration->boot_id, UINT64_MAX);
    for (const DeclaredGroup& group : declaration->groups)
      found.insert(found.end(), group.experts.begin(), group.experts.end());
  }
  return found;
}

TEST(DhtDeclaration, AnyNumberOfExpertsRoundTrips) {
  SeededRng rng(1);
  for (const size_t depth : {1U, 2U, 3U, 8U})
    for (const size_t count : {1U, 2U, 63U, 64U, 1000U, 4096U})
      for (const uint64_t spread : {20U, 1000U, 999'999'999U}) {
        std::set<Coordinates> experts;
        for (size_t i = 0; i < count; ++i) {
          Coordinates coordinates(depth);
          for (uint32_t& value : coordinates)
            value = static_cast<uint32_t>(rng.below(spread + 1));
          experts.insert(coordinates);
        }
        const std::vector<Coordinates> sorted(experts.begin(), experts.end());
        std::vector<Coordinates> shuffled = sorted;
        for (size_t i = shuffled.size(); i > 1; --i)
          std::swap(shuffled[i - 1], shuffled[rng.below(i)]);
        const auto parts = encode_declaration(UINT64_MAX, {{UINT64_MAX, depth, 255, shuffled}});
        ASSERT_TRUE(parts) << depth << " " << count << " " << spread;
        EXPECT_EQ(all_of(*parts), sorted);
      }
}

// learning-at-home §6A-26: 64 experts declared in one call were seen in part.
TEST(DhtDeclaration, ADenseGridOf64IsOneSmallRecord) {
  std::vector<Coordinates> experts;
  for (uint32_t i = 0; i < 64; ++i)
    experts.push_back({i / 8, i % 8});
  const auto parts = encode_declaration(1, {{1, 2, 0, experts}});
  ASSERT_TRUE(parts);
  ASSERT_EQ(parts->size(), 1U);
  EXPECT_LT(parts->at(0).size(), 120U);
}

TEST(DhtDeclaration, GroupsKeepSchemaAndDepthApart) {
  std::vector<DeclaredGroup> groups;
  for (uint64_t schema = 0; schema < 200; ++schema)
    groups.push_back({schema, schema % 2, 0, {schema % 2 == 0 ? Coordinates{} : Coordinates{3}}});
  const auto parts = encode_declaration(1, groups);
  ASSERT_TRUE(parts);
  size_t seen = 0;
  for (const Buffer& part : *parts) {
    const auto declaration = decode_declaration(part);
    ASSERT_TRUE(declaration);
    for (const DeclaredGroup& group : declaration->groups) {
      EXPECT_EQ(group.schema_hash, seen);
      EXPECT_EQ(group.depth, seen % 2);
      EXPECT_EQ(group.experts, groups[seen].experts);
      ++seen;
    }
  }
  EXPECT_EQ(seen, groups.size());
}

TEST(DhtDeclaration, TooManyExpertsAreAnErrorNotALoss) {
  std::vector<Coordinates> experts;
  for (uint32_t i = 0; i < 65'536; ++i)
    experts.push_back({i * 10'000, 999'999'999, 999'999'999, 999'999'999});
  const auto parts = encode_declaration(1, {{1, 4, 0, experts}});
  ASSERT_FALSE(parts);
  EXPECT_EQ(parts.error().code, ErrorCode::kInvalidArgument);
}

TEST(DhtDeclaration, HostilePayloadsAreRefused) {
  const auto payload = [](std::initializer_list<int> coordinates, uint64_t depth) {
    Buffer bytes;
    for (const int value : coordinates)
      bytes.push_back(static_cast<std::byte>(value));
    wire::Writer out;
    out.array(4).u64(1).u64(1).u64(1).array(1);
    out.array(4).u64(1).u64(depth).u64(0).bin(bytes);
    return out.take();
  };
  EXPECT_TRUE(decode_declaration(payload({6, 0}, 2)));
  EXPECT_FALSE(decode_declaration(payload({6}, 2)));    // cut in the middle
  EXPECT_FALSE(decode_declaration(payload({7, 0}, 2))); // does not start at the first axis
  EXPECT_FALSE(decode_declaration(payload({5, 0}, 1))); // does not move
  EXPECT_FALSE(decode_declaration(payload({}, 1)));     // declares nothing
  EXPECT_FALSE(decode_declaration(payload({1}, 0)));    // bytes without coordinates
  EXPECT_FALSE(decode_declaration(payload({0x80}, 1))); // endless number
  EXPECT_FALSE(decode_declaration(payload({5}, 9)));    // too deep
  EXPECT_FALSE(decode_declaration(payload({255, 255, 255, 255, 255, 255, 255, 255, 127}, 1)));
  SeededRng rng(2);
  for (int i = 0; i < 20'000; ++i) {
    Buffer noise(rng.below(64));
    rng.fill(noise);
    if (const auto declaration = decode_declaration(noise)) {
      EXPECT_LE(declaration->groups.size(), 64U);
    }
  }
}

TEST(DhtDeclaration, ServerRecordsRoundTrip) {
  const ServerRecord server{
      {*Endpoint::parse("192.0.2.1", 8080), *Endpoint::parse("::1", 8080)}, UINT64_MAX, "0.1.0"};
  const auto decoded = decode_server(encode_server(server));
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->addresses, server.addresses);
  EXPECT_EQ(decoded->boot_id, server.boot_id);
  EXPECT_EQ(decoded->version, server.version);
  EXPECT_FALSE(decode_server(encode_server({{}, 1, ""})));
  EXPECT_FALSE(decode_server(encode_server({{*Endpoint::parse("0.0.0.0", 80)}, 1, ""})));
}

TEST(DhtGrid, FlatIdsAreRowMajor) {
  const Grid grid = *Grid::make("ffn.2", {3, 5});
  EXPECT_EQ(grid.experts(), 15U);
  EXPECT_EQ(grid.uid(0), "ffn.2.0.0");
  EXPECT_EQ(grid.uid(7), "ffn.2.1.2");
  for (const std::vector<int64_t>& bad :
       {std::vector<int64_t>{}, {0}, {-1}, {65'537}, {256, 257}, {1, 1, 1, 1, 1, 1, 1, 1, 1}})
    EXPECT_FALSE(Grid::make("ffn", bad));
}

} // namespace
} // namespace lah::dht
