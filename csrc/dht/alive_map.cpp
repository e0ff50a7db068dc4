#include "dht/alive_map.hpp"

#include <algorithm>
#include <optional>

namespace lah::dht {
namespace {

Error invalid(std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(message)};
}

std::optional<uint32_t> flat_id(const Grid& grid, const Coordinates& coordinates) {
  const size_t lead = grid.prefix.coordinates.size();
  if (coordinates.size() != lead + grid.size.size() ||
      !std::equal(grid.prefix.coordinates.begin(), grid.prefix.coordinates.end(),
                  coordinates.begin()))
    return std::nullopt;
  uint32_t flat = 0;
  for (size_t i = 0; i < grid.size.size(); ++i) {
    if (coordinates[lead + i] >= grid.size[i])
      return std::nullopt;
    flat = flat * grid.size[i] + coordinates[lead + i];
  }
  return flat;
}

struct Candidate {
  uint64_t seq;
  uint32_t server;
};
using ByFlatId = std::map<uint32_t, Candidate>;

} // namespace

Result<Grid> Grid::make(std::string_view prefix, const std::vector<int64_t>& size) {
  Result<ExpertUid> parsed = parse_uid(prefix);
  if (!parsed)
    return parsed.error();
  if (size.empty() || size.size() + parsed->coordinates.size() > Limits::kGridDims)
    return invalid("a grid has 1 to " + std::to_string(Limits::kGridDims) + " dimensions, got " +
                   std::to_string(size.size()));
  Grid grid{std::move(*parsed), {}};
  uint64_t experts = 1;
  for (const int64_t dimension : size) {
    if (dimension < 1 || dimension > int64_t{Limits::kGridExperts})
      return invalid("a grid dimension must be positive, got " + std::to_string(dimension));
    experts *= static_cast<uint64_t>(dimension);
    if (experts > Limits::kGridExperts)
      return invalid("a grid may hold at most " + std::to_string(Limits::kGridExperts) +
                     " experts");
    grid.size.push_back(static_cast<uint32_t>(dimension));
  }
  return grid;
}

size_t Grid::experts() const {
  size_t count = 1;
  for (const uint32_t dimension : size)
    count *= dimension;
  return count;
}

std::string Grid::uid(uint32_t flat_id) const {
  Coordinates coordinates(size.size());
  for (size_t i = size.size(); i-- > 0; flat_id /= size[i])
    coordinates[i] = flat_id % size[i];
  return format_uid(format_uid(prefix.prefix, prefix.coordinates), coordinates);
}

bool AliveMap::same_content(const AliveMap& other) const {
  return schema_hash == other.schema_hash && other_schemas == other.other_schemas &&
         servers == other.servers && experts == other.experts;
}

AliveMap build_alive_map(const Grid& grid, const PrefixReader& reader, const ServerBook& servers,
                         const IsSuspect& suspect) {
  AliveMap map;
  std::map<uint64_t, ByFlatId> schemas;
  for (const auto& [key, owner] : reader.owners()) {
    const PrefixReader::OwnedPart* first = owner.first();
    if (first == nullptr || first->declaration.groups.empty())
      continue;
    const uint64_t boot_id = first->declaration.boot_id;
    const ServerRecord* server = servers.find(key, boot_id);
    if (server == nullptr || suspect(key, boot_id))
      continue;
    const auto index = static_cast<uint32_t>(map.servers.size());
    map.servers.push_back({key, server->addresses.front(), boot_id});
    for (const auto& [number, part] : owner.parts) {
      if (number >= first->declaration.parts || part.declaration.boot_id != boot_id)
        continue; // left over from an earlier declaration
      for (const DeclaredGroup& group : part.declaration.groups)
        for (const Coordinates& coordinates : group.experts)
          if (const auto flat = flat_id(grid, coordinates)) {
            Candidate& held = schemas[group.schema_hash][*flat];
            if (part.seq > held.seq)
              held = {part.seq, index};
          }
    }
  }
  const ByFlatId* most = nullptr;
  for (const auto& [hash, experts] : schemas) { // ties go to the lower hash
    if (most == nullptr || experts.size() > most->size()) {
      most = &experts;
      map.schema_hash = hash;
    }
    map.other_schemas += experts.size();
  }
  if (most == nullptr)
    return map;
  map.other_schemas -= most->size();
  for (const auto& [flat, candidate] : *most)
    map.experts.push_back({flat, candidate.server});
  return map;
}

} // namespace lah::dht
