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

// One owner says that it serves one expert.
struct Claim {
  uint64_t schema;
  uint32_t flat_id;
  uint64_t rank;
  uint32_t server;
  auto operator<=>(const Claim&) const = default;
};
using Claims = std::vector<Claim>; // sorted: by schema, then expert, then preference

uint64_t mix(uint64_t x) { // splitmix64 (Steele, Lea and Flood, 2014)
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Calls `visit(first, last)` for each run of claims whose `field` is the same.
template <class Field, class Visit>
void for_each_run(Claims::const_iterator begin, Claims::const_iterator end, Field field,
                  Visit visit) {
  while (begin != end) {
    const auto next =
        std::find_if(begin, end, [&](const Claim& claim) { return claim.*field != *begin.*field; });
    visit(begin, next);
    begin = next;
  }
}

AliveMap::Expert expert_of(Claims::const_iterator first, Claims::const_iterator last) {
  AliveMap::Expert expert{first->flat_id, first->server, {}};
  for (++first; first != last && expert.replicas.size() < Limits::kExpertReplicas; ++first)
    expert.replicas.push_back(first->server);
  return expert;
}

} // namespace

Result<Grid> Grid::make(std::string_view prefix, const std::vector<int64_t>& size,
                        uint64_t most_experts) {
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
      return invalid("a grid dimension must be 1 to " + std::to_string(Limits::kGridExperts) +
                     ", got " + std::to_string(dimension));
    if (experts > most_experts / static_cast<uint64_t>(dimension))
      return invalid("a grid may hold at most " + std::to_string(most_experts) + " experts");
    experts *= static_cast<uint64_t>(dimension);
    grid.size.push_back(static_cast<uint32_t>(dimension));
  }
  return grid;
}

uint64_t Grid::experts() const {
  uint64_t count = 1;
  for (const uint32_t dimension : size)
    count *= dimension;
  return count;
}

Coordinates Grid::coordinates(uint64_t flat_id) const {
  const size_t lead = prefix.coordinates.size();
  Coordinates coordinates = prefix.coordinates;
  coordinates.resize(lead + size.size());
  for (size_t i = size.size(); i-- > 0; flat_id /= size[i])
    coordinates[lead + i] = static_cast<uint32_t>(flat_id % size[i]);
  return coordinates;
}

std::string Grid::uid(uint64_t flat_id) const {
  return format_uid(prefix.prefix, coordinates(flat_id));
}

bool AliveMap::same_content(const AliveMap& other) const {
  return schema_hash == other.schema_hash && other_schemas == other.other_schemas &&
         servers == other.servers && experts == other.experts;
}

Preference::Preference(const Id& trainer, const PublicKey& owner)
    : seed_(distance(trainer, Id::from_bytes(owner)).words[0]) {}

uint64_t Preference::rank(const Coordinates& coordinates) const {
  uint64_t rank = mix(seed_);
  for (const uint32_t coordinate : coordinates)
    rank = mix(rank ^ coordinate);
  return rank;
}

AliveMap build_alive_map(const Grid& grid, const PrefixReader& reader, const IsSuspect& suspect,
                         const Id& trainer) {
  AliveMap map;
  Claims claims;
  for (const auto& [key, owner] : reader.owners()) {
    const PrefixReader::OwnedPart* first = owner.first();
    if (first == nullptr || first->declaration.groups.empty())
      continue;
    const uint64_t boot_id = first->declaration.boot_id;
    const std::vector<Endpoint>& addresses = first->declaration.addresses;
    if (addresses.empty() || suspect(key, boot_id))
      continue;
    const auto index = static_cast<uint32_t>(map.servers.size());
    const Preference preference(trainer, key);
    map.servers.push_back({key, addresses.front(), boot_id});
    for (const auto& [number, part] : owner.parts) {
      if (number >= first->declaration.parts || part.declaration.boot_id != boot_id)
        continue; // left over from an earlier declaration
      for (const DeclaredGroup& group : part.declaration.groups)
        for (const Coordinates& coordinates : group.experts)
          if (const auto flat = flat_id(grid, coordinates))
            claims.push_back({group.schema_hash, *flat, preference.rank(coordinates), index});
    }
  }
  std::sort(claims.begin(), claims.end());
  claims.erase(std::unique(claims.begin(), claims.end()), claims.end());
  for_each_run(claims.cbegin(), claims.cend(), &Claim::schema, [&](auto begin, auto end) {
    std::vector<AliveMap::Expert> experts;
    for_each_run(begin, end, &Claim::flat_id,
                 [&](auto first, auto last) { experts.push_back(expert_of(first, last)); });
    map.other_schemas += experts.size();
    if (experts.size() > map.experts.size()) { // ties go to the lower hash
      map.experts = std::move(experts);
      map.schema_hash = begin->schema;
    }
  });
  map.other_schemas -= map.experts.size();
  return map;
}

} // namespace lah::dht
