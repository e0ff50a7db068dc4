#pragma once

#include <functional>

#include "dht/prefix_reader.hpp"

namespace lah::dht {

// A grid of experts under one prefix, as a gate sees it: "ffn" with {8, 8} holds ffn.0.0 ..
// ffn.7.7.
struct Grid {
  ExpertUid prefix; // a prefix that ends in numbers keeps them as leading coordinates
  std::vector<uint32_t> size;

  static Result<Grid> make(std::string_view prefix, const std::vector<int64_t>& size,
                           uint64_t most_experts = Limits::kGridExperts);
  uint64_t experts() const;
  Coordinates coordinates(uint64_t flat_id) const; // those of the prefix first
  std::string uid(uint64_t flat_id) const;
  auto operator<=>(const Grid&) const = default;
};

// How much one trainer prefers one owner for each coordinate: rendezvous hashing (Thaler and
// Ravishankar, 1998). The choice changes only when the preferred owner comes or goes, and differs
// between trainers and between coordinates, so that replicas share the work.
class Preference {
public:
  Preference(const Id& trainer, const PublicKey& owner);
  uint64_t rank(const Coordinates& coordinates) const; // lower is better

private:
  uint64_t seed_;
};

// Which experts of a grid are alive and who serves each of them. Immutable once published.
struct AliveMap {
  struct Server {
    PublicKey owner;
    Endpoint endpoint; // TCP
    uint64_t boot_id;
    bool operator==(const Server&) const = default;
  };
  struct Expert {
    uint32_t flat_id;               // row-major in the grid
    uint32_t server;                // index into servers
    std::vector<uint32_t> replicas; // others that serve it, best first
    bool operator==(const Expert&) const = default;
  };
  uint64_t version = 0;     // grows with every change
  uint64_t schema_hash = 0; // of the experts listed
  size_t other_schemas = 0; // alive experts left out, because most declare another schema
  std::vector<Server> servers;
  std::vector<Expert> experts; // by flat_id

  bool same_content(const AliveMap& other) const;
};

using IsSuspect = std::function<bool(const PublicKey& owner, uint64_t boot_id)>;

// The live owners of each coordinate, in the trainer's order of preference, leaving out suspects,
// owners that declare no address, coordinates outside the grid or of another depth, schemas
// declared by fewer experts than another one, and replicas above Limits::kExpertReplicas.
AliveMap build_alive_map(const Grid& grid, const PrefixReader& reader, const IsSuspect& suspect,
                         const Id& trainer);

} // namespace lah::dht
