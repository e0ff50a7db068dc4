#include "dht/level_declaration.hpp"

#include <algorithm>
#include <set>

#include "dht/contact.hpp"
#include "wire/reader.hpp"
#include "wire/varint.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

constexpr uint64_t kFormat = 1;
constexpr size_t kArrayMax = 64;
// Encoded bytes beside the coordinates: of a record, and of each of its groups.
constexpr size_t kRecordOverhead = 1 + 1 + 9 + 3 + 20 + 3;
constexpr size_t kGroupOverhead = 1 + 9 + 5 + 3;
constexpr size_t kGroupsPerPart = 32;
constexpr size_t kRootSlots = 16;

using Next = std::map<uint32_t, uint32_t>;      // coordinate -> experts below it
using BySchema = std::map<uint64_t, Next>;      // of one tuple
using Tuples = std::map<Coordinates, BySchema>; // of one depth

void pack_range(Buffer& out, uint32_t free_from, const CoordinateRange& range) {
  const uint64_t more = range.last - range.first;
  wire::put_varint(out, uint64_t{range.first - free_from} * 2 + (more > 0 ? 1 : 0));
  if (more > 0)
    wire::put_varint(out, more - 1);
}

bool unpack_ranges(ByteView in, std::vector<CoordinateRange>& ranges) {
  uint64_t free_from = 0;
  while (!in.empty()) {
    uint64_t code = 0;
    uint64_t more = 0;
    if (!wire::take_varint(in, code) || code / 2 >= Limits::kGridExperts)
      return false;
    if (code % 2 == 1 && (!wire::take_varint(in, more) || ++more >= Limits::kGridExperts))
      return false;
    const uint64_t first = free_from + code / 2;
    const uint64_t last = first + more;
    if (last >= Limits::kGridExperts)
      return false;
    ranges.push_back({static_cast<uint32_t>(first), static_cast<uint32_t>(last)});
    free_from = last + 1;
  }
  return !ranges.empty();
}

struct PackedGroup {
  uint64_t schema_hash;
  uint32_t experts;
  Buffer next;
};
using Part = std::vector<PackedGroup>;

// Fills parts one after the other.
std::vector<Part> pack(const BySchema& by_schema) {
  std::vector<Part> parts(1);
  size_t used = kRecordOverhead;
  for (const auto& [schema, next] : by_schema) {
    bool opened = false;
    uint32_t free_from = 0;
    for (auto it = next.begin(); it != next.end();) {
      CoordinateRange range{it->first, it->first};
      uint32_t experts = it->second;
      while (++it != next.end() && it->first == range.last + 1) {
        range.last = it->first;
        experts += it->second;
      }
      Buffer packed;
      pack_range(packed, opened ? free_from : 0, range);
      const size_t opening = opened ? 0 : kGroupOverhead;
      if (used + opening + packed.size() > Limits::kRecordPayloadBytes ||
          (!opened && parts.back().size() >= kGroupsPerPart)) {
        parts.emplace_back();
        used = kRecordOverhead;
        opened = false;
        packed.clear();
        pack_range(packed, 0, range);
      }
      if (!opened) {
        parts.back().push_back({schema, 0, {}});
        used += kGroupOverhead;
        opened = true;
      }
      PackedGroup& group = parts.back().back();
      group.experts += experts;
      append(group.next, packed);
      used += packed.size();
      free_from = range.last + 1;
    }
  }
  return parts;
}

Buffer encode(uint64_t boot_id, size_t parts, const Endpoint* address, const Part& part) {
  wire::Writer out;
  out.array(5).u64(kFormat).u64(boot_id).u64(parts);
  if (address == nullptr)
    out.nil();
  else
    out.bin(encode_endpoint(*address));
  out.array(part.size());
  for (const PackedGroup& group : part) {
    out.array(3).u64(group.schema_hash).u64(group.experts);
    out.bin(group.next);
  }
  return out.take();
}

bool fits_a_grid(const Coordinates& coordinates) {
  for (const uint32_t coordinate : coordinates)
    if (coordinate >= Limits::kGridExperts)
      return false;
  return !coordinates.empty();
}

std::map<uint32_t, Tuples> tuples_by_depth(const std::vector<DeclaredGroup>& groups) {
  std::map<uint32_t, Tuples> depths;
  for (const DeclaredGroup& group : groups) {
    const std::set<Coordinates> unique(group.experts.begin(), group.experts.end());
    for (const Coordinates& expert : unique) {
      if (!fits_a_grid(expert))
        continue;
      Tuples& tuples = depths[static_cast<uint32_t>(group.depth)];
      for (size_t level = 0; level < expert.size(); ++level) {
        const Coordinates tuple(expert.begin(), expert.begin() + static_cast<ptrdiff_t>(level));
        ++tuples[tuple][group.schema_hash][expert[level]];
      }
    }
  }
  return depths;
}

} // namespace

size_t level_slots(const LevelName& name) {
  return name.tuple.empty() ? kRootSlots : 1;
}

size_t level_slot(const LevelName& name, const PublicKey& owner) {
  return owner.back() % level_slots(name);
}

Id level_key(const LevelName& name, size_t index) {
  Buffer text;
  append(text, as_bytes(name.prefix));
  // Fixed sizes behind the prefix: no other prefix and numbers can make the same bytes.
  const auto put = [&](uint64_t number) {
    for (unsigned shift = 0; shift < 32; shift += 8)
      text.push_back(static_cast<std::byte>(number >> shift & 0xff));
  };
  for (const uint32_t coordinate : name.tuple)
    put(coordinate);
  put(name.tuple.size());
  put(name.depth);
  put(index);
  return record_key("lah-level-1", text);
}

bool needs_levels(const DeclaredGroup& group, std::optional<uint64_t> cells) {
  if (cells)
    return *cells > Limits::kGridExperts;
  uint64_t span = 1;
  for (size_t axis = 0; axis < group.depth; ++axis) {
    uint64_t size = 1;
    for (const Coordinates& expert : group.experts)
      size = std::max<uint64_t>(size, uint64_t{expert[axis]} + 1);
    span = std::min<uint64_t>(span * size, Limits::kGridExperts + 1); // no overflow
  }
  return span > Limits::kGridExperts;
}

Result<std::map<Id, Buffer>> encode_levels(const std::string& prefix, const PublicKey& owner,
                                           uint64_t boot_id, const Endpoint& address,
                                           const std::vector<DeclaredGroup>& groups) {
  std::map<Id, Buffer> payloads;
  for (const auto& [depth, tuples] : tuples_by_depth(groups))
    for (const auto& [tuple, by_schema] : tuples) {
      const LevelName name{prefix, depth, tuple};
      const std::vector<Part> parts = pack(by_schema);
      if (parts.size() > Limits::kLevelParts)
        return Error{ErrorCode::kInvalidArgument,
                     "too many scattered experts below '" + format_uid(prefix, tuple) +
                         "': they would need " + std::to_string(parts.size()) +
                         " records, at most " + std::to_string(Limits::kLevelParts) +
                         " are allowed"};
      const bool last = tuple.size() + 1 == depth;
      for (size_t part = 0; part < parts.size(); ++part)
        payloads[level_key(name, level_slot(name, owner) + part * level_slots(name))] =
            encode(boot_id, parts.size(), last ? &address : nullptr, parts[part]);
    }
  return payloads;
}

Result<LevelRecord> decode_level(ByteView payload) {
  const Error malformed{ErrorCode::kProtocol, "malformed level record"};
  Result<wire::Reader> parsed = wire::Reader::parse(payload);
  if (!parsed)
    return parsed.error();
  wire::Reader& in = *parsed;
  LevelRecord level;
  in.enter(5, kArrayMax);
  if (in.u64() != kFormat)
    return malformed;
  level.boot_id = in.u64();
  level.parts = static_cast<uint32_t>(in.u64(Limits::kLevelParts));
  if (!in.nil()) {
    const auto address = decode_endpoint(in.bin(6, 18));
    if (!address || !is_sendable(*address))
      return malformed;
    level.address = *address;
  }
  const size_t groups = in.enter(1, kArrayMax);
  for (size_t i = 0; i < groups && in.ok(); ++i) {
    LevelGroup group;
    in.enter(3, kArrayMax);
    group.schema_hash = in.u64();
    group.experts = static_cast<uint32_t>(in.u64(Limits::kDeclaredExperts));
    const ByteView next = in.bin(1, Limits::kRecordPayloadBytes);
    in.leave();
    if (!in.ok() || !unpack_ranges(next, group.next))
      return malformed;
    level.groups.push_back(std::move(group));
  }
  in.leave();
  in.leave();
  if (!in.ok() || level.parts == 0)
    return malformed;
  return level;
}

} // namespace lah::dht
