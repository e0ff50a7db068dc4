// What servers say beside their declarations in grids too large for alive maps: under each leading
// tuple of coordinates, which next coordinates they serve experts below. Beam search reads only the
// tuples that score well.
#pragma once

#include <map>
#include <optional>

#include "dht/declaration.hpp"

namespace lah::dht {

// Consecutive coordinates: first, first + 1, ..., last.
struct CoordinateRange {
  uint32_t first;
  uint32_t last;
  auto operator<=>(const CoordinateRange&) const = default;
};

// Experts of one schema below one tuple, of one owner.
struct LevelGroup {
  uint64_t schema_hash = 0;
  uint32_t experts = 0;              // how many, over all parts
  std::vector<CoordinateRange> next; // ascending, with gaps between
};

struct LevelRecord {
  uint64_t boot_id = 0;
  uint32_t parts = 1;              // records of this owner under this tuple
  std::optional<Endpoint> address; // TCP; there if the next coordinates are the last ones
  std::vector<LevelGroup> groups;
};

// The experts of `depth` coordinates of one prefix, and those of them that start with `tuple`.
struct LevelName {
  std::string prefix;
  uint32_t depth = 0;
  Coordinates tuple = {}; // shorter than depth
  auto operator<=>(const LevelName&) const = default;
};

// One owner's records lie at (slot of the owner) + part * level_slots(): all owners of a prefix
// write under its empty tuple, whose records are spread over several keys to be read at once.
size_t level_slots(const LevelName& name);
size_t level_slot(const LevelName& name, const PublicKey& owner);
Id level_key(const LevelName& name, size_t index);

// Does the grid that these experts span need level records? `cells`: of the grid, if known; else it
// is taken to reach as far as the experts do.
bool needs_levels(const DeclaredGroup& group, std::optional<uint64_t> cells);

// Records by key for all experts of one prefix that need them; an error if more than
// Limits::kLevelParts would be needed for one tuple. Coordinates that no grid can have are left
// out.
Result<std::map<Id, Buffer>> encode_levels(const std::string& prefix, const PublicKey& owner,
                                           uint64_t boot_id, const Endpoint& address,
                                           const std::vector<DeclaredGroup>& groups);
Result<LevelRecord> decode_level(ByteView payload);

} // namespace lah::dht
