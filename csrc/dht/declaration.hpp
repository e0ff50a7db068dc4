// What servers say in the DHT: which experts they serve, and where they are reached.
#pragma once

#include "base/endpoint.hpp"
#include "base/result.hpp"
#include "dht/record.hpp"

namespace lah::dht {

using Coordinates = std::vector<uint32_t>;

// "ffn.3.17" is the expert at (3, 17) of prefix "ffn"; "expert0" has no coordinates. The first
// component is always part of the prefix.
struct ExpertUid {
  std::string prefix;
  Coordinates coordinates;
  auto operator<=>(const ExpertUid&) const = default;
};

// An error names what is wrong: empty, longer than Limits::kUidBytes, a coordinate with leading
// zeros or above 999,999,999, more than Limits::kGridDims coordinates.
Result<ExpertUid> parse_uid(std::string_view uid);
std::string format_uid(std::string_view prefix, const Coordinates& coordinates);

// Experts of one prefix that share a schema and a depth.
struct DeclaredGroup {
  uint64_t schema_hash = 0;
  size_t depth = 0;
  uint8_t load = 0;                 // 0 idle .. 255 refusing
  std::vector<Coordinates> experts; // sorted, unique, each of `depth` coordinates
};

// All that one owner serves under one prefix, or one part of it.
struct Declaration {
  uint64_t boot_id = 0; // of the server process: a restarted server has another
  uint32_t parts = 1;
  std::vector<DeclaredGroup> groups;
  // Where the server is reached: TCP, the preferred one first, at most
  // Limits::kDeclaredAddresses. In the first part only.
  std::vector<Endpoint> addresses = {};
};

// Payloads of the parts, each at most Limits::kRecordPayloadBytes; an error if there would be more
// than Limits::kDeclarationParts. Groups need not be sorted.
Result<std::vector<Buffer>> encode_declaration(uint64_t boot_id, std::vector<DeclaredGroup> groups,
                                               const std::vector<Endpoint>& addresses = {});
Result<Declaration> decode_declaration(ByteView payload);
Id declaration_key(std::string_view prefix, uint32_t part);

// How to reach a server, and more of it than its declarations say. One record per owner, whatever
// the number of its prefixes.
struct ServerRecord {
  std::vector<Endpoint> addresses; // TCP, the preferred one first; 1..Limits::kNodeAddresses
  uint64_t boot_id = 0;
  std::string version;
};

Buffer encode_server(const ServerRecord& server);
Result<ServerRecord> decode_server(ByteView payload);
Id server_key(const PublicKey& owner);

} // namespace lah::dht
