// The computation of one beam search, without any network: which experts are best as far as the
// level records known tell, and which tuples must be read to know better.
#pragma once

#include <unordered_map>

#include "dht/alive_map.hpp"
#include "dht/level_cache.hpp"

namespace lah::dht {

struct BeamRequest {
  Grid grid;                 // at most Limits::kBeamCells
  std::vector<float> scores; // [rows, sum of the grid's sizes]
  size_t rows = 0;
  size_t k = 1;    // experts a row
  size_t beam = 1; // tuples of each length that a row may look below
};

struct BeamResult {
  struct Expert {
    uint64_t flat_id;
    uint32_t server;                // index into servers
    std::vector<uint32_t> replicas; // others that serve it, best first
  };
  std::vector<AliveMap::Server> servers;
  std::vector<Expert> experts; // those chosen by any row, by flat_id
  std::vector<int32_t> chosen; // [rows, k] indices into experts, best first; -1: no more are known
  uint64_t declared = 0;       // experts of the schema chosen, as their owners count: replicas too
  uint64_t other_schemas = 0;  // those of other schemas, left out
  size_t unread = 0; // tuples that would have been looked below, had they been read in time
};

// Exact best-first search (A*) in the tree of tuples: what a tuple's best expert can score at most
// is its own score plus the best of each axis behind, so few tuples are looked below. Sums are
// taken in float from left to right as ops.route_grid does; rounding is monotonic, hence the bound
// holds for rounded sums too. Ties go to the lower id. The beam bounds the work on rows whose
// scores tell little.
class BeamQuery {
public:
  using Find = std::function<const LevelCache::Records*(const LevelName&)>;

  BeamQuery(BeamRequest request, Find find, IsSuspect suspect, const Id& trainer);

  // An error names what is wrong with it.
  static std::optional<Error> check(const BeamRequest& request);

  // Searches all rows that may still improve; returns the tuples to read for that, the most wanted
  // first. None: the search is done.
  std::vector<LevelName> run(WallMs wall);
  // What is known of a tuple changed.
  void forget(const LevelName& name);
  // Is the tuple one that this search may look below?
  bool concerns(const LevelName& name) const;
  LevelName root() const { return name_of(0, 0); }
  BeamResult result(WallMs wall);

private:
  // A tuple of `level` coordinates, and the score of these.
  struct Candidate {
    float bound;
    float score;
    uint64_t flat; // row-major in the grid's first axes
    uint32_t level;
  };
  struct Best {
    float score;
    uint64_t flat_id;
  };
  struct View {
    bool known = false;
    std::vector<CoordinateRange> next; // coordinates alive; ascending, disjoint, inside the grid
  };
  struct RowScores;
  struct Holder {
    const PublicKey* owner;
    const LevelRecord* record;
  };

  LevelName name_of(uint64_t flat, uint32_t level) const;
  const View& view(uint64_t flat, uint32_t level);
  View make_view(const LevelCache::Records* records, uint32_t level) const;
  void learn_root(const LevelCache::Records& records);
  bool usable(const PublicKey& owner, const LevelCache::Held& held) const;
  void run_row(size_t row);
  void look_below(const RowScores& scores, const Candidate& tuple, const View& view,
                  std::vector<Best>& best);
  bool improves(const Candidate& tuple, const std::vector<Best>& best) const;
  bool worse(const Candidate& a, const Candidate& b) const;
  std::vector<Holder> holders_of(uint64_t flat_id, uint32_t coordinate) const;
  void want(uint64_t flat, uint32_t level, size_t rank);

  BeamRequest request_;
  Find find_;
  IsSuspect suspect_;
  Id trainer_;
  WallMs wall_ = 0;
  std::vector<size_t> axis_;    // where each axis begins in a row of scores
  std::vector<uint64_t> below_; // grid cells below a tuple of each length

  std::vector<std::unordered_map<uint64_t, View>> views_; // by level
  bool root_known_ = false;
  uint64_t schema_ = 0; // of most experts, if the root is known
  uint64_t declared_ = 0;
  uint64_t other_schemas_ = 0;
  struct Incarnation {
    uint64_t seq;
    uint64_t boot_id;
  };
  std::map<PublicKey, Incarnation> incarnations_; // of the owners, by the root

  std::vector<std::vector<Best>> best_; // of each row, best first
  std::vector<bool> done_;              // of each row
  std::vector<Candidate> heap_;         // of the row being searched
  bool row_done_ = false;
  std::map<std::pair<uint32_t, uint64_t>, double> wanted_; // how much, by level and tuple
};

} // namespace lah::dht
