#include "dht/declaration.hpp"

#include <algorithm>

#include "dht/contact.hpp"
#include "wire/reader.hpp"
#include "wire/varint.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

constexpr uint64_t kFormat = 1;
constexpr size_t kArrayMax = 64;
// Encoded bytes beside the coordinates: of a declaration, and of each of its groups.
constexpr size_t kDeclarationOverhead = 1 + 1 + 9 + 3 + 3 + 1 + Limits::kDeclaredAddresses * 20;
constexpr size_t kGroupOverhead = 1 + 9 + 1 + 2 + 3;
constexpr size_t kGroupsPerPart = 48;

Error invalid(std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(message)};
}

bool is_number(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// Coordinates in order, each as the first dimension in which it differs from the one before, the
// step there, and the dimensions behind in full: one byte for a neighbour in a dense grid.
Buffer pack_step(const Coordinates* before, const Coordinates& coordinates) {
  Buffer out;
  size_t at = 0;
  while (before != nullptr && (*before)[at] == coordinates[at])
    ++at;
  const uint64_t step = coordinates[at] - (before == nullptr ? 0 : (*before)[at]);
  wire::put_varint(out, step * coordinates.size() + at);
  for (size_t i = at + 1; i < coordinates.size(); ++i)
    wire::put_varint(out, coordinates[i]);
  return out;
}

bool unpack(ByteView in, DeclaredGroup& group) {
  if (group.depth == 0) {
    group.experts.emplace_back();
    return in.empty();
  }
  Coordinates current(group.depth, 0);
  while (!in.empty()) {
    uint64_t code = 0;
    if (!wire::take_varint(in, code))
      return false;
    const size_t at = static_cast<size_t>(code % group.depth);
    const uint64_t step = code / group.depth;
    const bool first = group.experts.empty();
    if (first ? at != 0 : step == 0)
      return false;
    const uint64_t moved = current[at] + step;
    if (step > UINT32_MAX || moved > UINT32_MAX)
      return false;
    current[at] = static_cast<uint32_t>(moved);
    for (size_t i = at + 1; i < group.depth; ++i) {
      uint64_t value = 0;
      if (!wire::take_varint(in, value) || value > UINT32_MAX)
        return false;
      current[i] = static_cast<uint32_t>(value);
    }
    group.experts.push_back(current);
  }
  return !group.experts.empty();
}

void put_addresses(wire::Writer& out, const std::vector<Endpoint>& addresses, size_t most) {
  const size_t count = std::min(addresses.size(), most);
  out.array(count);
  for (size_t i = 0; i < count; ++i)
    out.bin(encode_endpoint(addresses[i]));
}

std::vector<Endpoint> read_addresses(wire::Reader& in, size_t least, size_t most) {
  std::vector<Endpoint> addresses;
  const size_t count = in.enter(least, most);
  for (size_t i = 0; i < count && in.ok(); ++i) {
    const auto address = decode_endpoint(in.bin(6, 18));
    if (!address || !is_sendable(*address))
      in.fail();
    else
      addresses.push_back(*address);
  }
  in.leave();
  return addresses;
}

struct PackedGroup {
  uint64_t schema_hash;
  size_t depth;
  uint8_t load;
  Buffer coordinates;
};
using Part = std::vector<PackedGroup>;

// Fills parts one after the other.
std::vector<Part> pack(std::vector<DeclaredGroup>& groups) {
  std::vector<Part> parts(1);
  size_t used = kDeclarationOverhead;
  for (DeclaredGroup& group : groups) {
    std::sort(group.experts.begin(), group.experts.end());
    group.experts.erase(std::unique(group.experts.begin(), group.experts.end()),
                        group.experts.end());
    const Coordinates* before = nullptr;
    for (const Coordinates& coordinates : group.experts) {
      Buffer step = group.depth == 0 ? Buffer{} : pack_step(before, coordinates);
      const size_t opening = before == nullptr ? kGroupOverhead : 0;
      if (used + opening + step.size() > Limits::kRecordPayloadBytes ||
          (before == nullptr && parts.back().size() >= kGroupsPerPart)) {
        parts.emplace_back();
        used = kDeclarationOverhead;
        before = nullptr;
        step = group.depth == 0 ? Buffer{} : pack_step(before, coordinates);
      }
      if (before == nullptr) {
        parts.back().push_back({group.schema_hash, group.depth, group.load, {}});
        used += kGroupOverhead;
      }
      append(parts.back().back().coordinates, step);
      used += step.size();
      before = &coordinates;
    }
  }
  return parts;
}

} // namespace

Result<ExpertUid> parse_uid(std::string_view uid) {
  if (uid.empty() || uid.size() > Limits::kUidBytes)
    return invalid("an expert uid has 1 to " + std::to_string(Limits::kUidBytes) + " bytes, got " +
                   std::to_string(uid.size()));
  ExpertUid parsed;
  size_t end = uid.size();
  for (size_t dot = uid.rfind('.'); dot != std::string_view::npos;
       dot = end == 0 ? std::string_view::npos : uid.rfind('.', end - 1)) {
    const std::string_view component = uid.substr(dot + 1, end - dot - 1);
    if (!is_number(component))
      break;
    if (component.size() > 9 || (component.size() > 1 && component[0] == '0'))
      return invalid("coordinate '" + std::string(component) + "' of uid '" + std::string(uid) +
                     "' must be a number from 0 to 999999999 without leading zeros");
    parsed.coordinates.push_back(static_cast<uint32_t>(std::stoul(std::string(component))));
    end = dot;
  }
  if (parsed.coordinates.size() > Limits::kGridDims)
    return invalid("uid '" + std::string(uid) + "' has more than " +
                   std::to_string(Limits::kGridDims) + " coordinates");
  std::reverse(parsed.coordinates.begin(), parsed.coordinates.end());
  parsed.prefix = uid.substr(0, end);
  return parsed;
}

std::string format_uid(std::string_view prefix, const Coordinates& coordinates) {
  std::string uid(prefix);
  for (const uint32_t coordinate : coordinates)
    uid += "." + std::to_string(coordinate);
  return uid;
}

Result<std::vector<Buffer>> encode_declaration(uint64_t boot_id, std::vector<DeclaredGroup> groups,
                                               const std::vector<Endpoint>& addresses) {
  const std::vector<Part> parts = pack(groups);
  if (parts.size() > Limits::kDeclarationParts)
    return invalid("too many experts for one prefix: they would need " +
                   std::to_string(parts.size()) + " records, at most " +
                   std::to_string(Limits::kDeclarationParts) + " are allowed");
  std::vector<Buffer> payloads;
  for (const Part& part : parts) {
    wire::Writer out;
    out.array(5).u64(kFormat).u64(boot_id).u64(parts.size()).array(part.size());
    for (const PackedGroup& group : part) {
      out.array(4).u64(group.schema_hash).u64(group.depth).u64(group.load);
      out.bin(group.coordinates);
    }
    put_addresses(out, payloads.empty() ? addresses : std::vector<Endpoint>{},
                  Limits::kDeclaredAddresses);
    payloads.push_back(out.take());
  }
  return payloads;
}

Result<Declaration> decode_declaration(ByteView payload) {
  const Error malformed{ErrorCode::kProtocol, "malformed declaration"};
  Result<wire::Reader> parsed = wire::Reader::parse(payload);
  if (!parsed)
    return parsed.error();
  wire::Reader& in = *parsed;
  Declaration declaration;
  const size_t fields = in.enter(4, kArrayMax);
  if (in.u64() != kFormat)
    return malformed;
  declaration.boot_id = in.u64();
  declaration.parts = static_cast<uint32_t>(in.u64(Limits::kDeclarationParts));
  const size_t groups = in.enter(0, kArrayMax);
  for (size_t i = 0; i < groups && in.ok(); ++i) {
    DeclaredGroup group;
    in.enter(4, kArrayMax);
    group.schema_hash = in.u64();
    group.depth = static_cast<size_t>(in.u64(Limits::kGridDims));
    group.load = static_cast<uint8_t>(in.u64(255));
    const ByteView coordinates = in.bin(0, Limits::kRecordPayloadBytes);
    in.leave();
    if (!in.ok() || !unpack(coordinates, group))
      return malformed;
    declaration.groups.push_back(std::move(group));
  }
  in.leave();
  if (fields > 4)
    declaration.addresses = read_addresses(in, 0, Limits::kDeclaredAddresses);
  if (!in.ok() || declaration.parts == 0)
    return malformed;
  return declaration;
}

Id declaration_key(std::string_view prefix, uint32_t part) {
  Buffer name;
  append(name, as_bytes(prefix));
  for (unsigned shift = 0; shift < 32; shift += 8) // last four bytes: no prefix can imitate them
    name.push_back(static_cast<std::byte>(part >> shift & 0xff));
  return record_key("lah-prefix-1", name);
}

Buffer encode_server(const ServerRecord& server) {
  wire::Writer out;
  out.array(4).u64(kFormat).u64(server.boot_id).str(server.version);
  put_addresses(out, server.addresses, Limits::kNodeAddresses);
  return out.take();
}

Result<ServerRecord> decode_server(ByteView payload) {
  const Error malformed{ErrorCode::kProtocol, "malformed server record"};
  Result<wire::Reader> parsed = wire::Reader::parse(payload);
  if (!parsed)
    return parsed.error();
  wire::Reader& in = *parsed;
  ServerRecord server;
  in.enter(4, kArrayMax);
  if (in.u64() != kFormat)
    return malformed;
  server.boot_id = in.u64();
  server.version = in.str(64);
  server.addresses = read_addresses(in, 1, Limits::kNodeAddresses);
  in.leave();
  if (!in.ok())
    return malformed;
  return server;
}

Id server_key(const PublicKey& owner) {
  return record_key("lah-node-1", as_bytes(owner));
}

} // namespace lah::dht
