#include "dht/beam_query.hpp"

#include <algorithm>
#include <cmath>

namespace lah::dht {
namespace {

Error invalid(std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(message)};
}

// The union of ranges, each cut at `size`.
std::vector<CoordinateRange> united(std::vector<CoordinateRange> ranges, uint32_t size) {
  std::sort(ranges.begin(), ranges.end());
  std::vector<CoordinateRange> result;
  for (CoordinateRange range : ranges) {
    if (range.first >= size)
      break;
    range.last = std::min(range.last, size - 1);
    if (!result.empty() && range.first <= result.back().last + 1)
      result.back().last = std::max(result.back().last, range.last);
    else
      result.push_back(range);
  }
  return result;
}

bool contains(const std::vector<CoordinateRange>& ranges, uint32_t coordinate) {
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), coordinate,
                       [](uint32_t value, const auto& range) { return value < range.first; });
  return after != ranges.begin() && std::prev(after)->last >= coordinate;
}

} // namespace

// One row of scores, and what the axes from each one on can add at most.
struct BeamQuery::RowScores {
  const float* scores;
  std::vector<float> most; // of each axis

  float bound(float score, size_t level) const {
    for (size_t axis = level; axis < most.size(); ++axis)
      score += most[axis];
    return score;
  }
};

BeamQuery::BeamQuery(BeamRequest request, Find find, IsSuspect suspect, const Id& trainer)
    : request_(std::move(request)), find_(std::move(find)), suspect_(std::move(suspect)),
      trainer_(trainer), views_(request_.grid.size.size()), best_(request_.rows),
      done_(request_.rows, false) {
  size_t begin = 0;
  for (const uint32_t size : request_.grid.size) {
    axis_.push_back(begin);
    begin += size;
  }
  axis_.push_back(begin);
  below_.assign(axis_.size(), 1);
  for (size_t level = request_.grid.size.size(); level-- > 0;)
    below_[level] = below_[level + 1] * request_.grid.size[level];
}

std::optional<Error> BeamQuery::check(const BeamRequest& request) {
  size_t width = 0;
  for (const uint32_t size : request.grid.size)
    width += size;
  if (request.k < 1 || request.k > Limits::kBeamChoices)
    return invalid("k_best: expected 1 to " + std::to_string(Limits::kBeamChoices) + ", got " +
                   std::to_string(request.k));
  if (request.beam < request.k || request.beam > Limits::kBeamWidth)
    return invalid("beam_size: expected k_best to " + std::to_string(Limits::kBeamWidth) +
                   ", got " + std::to_string(request.beam));
  if (request.rows > Limits::kBeamScores / width)
    return invalid("scores: at most " + std::to_string(Limits::kBeamScores) + " are allowed");
  if (request.scores.size() != request.rows * width)
    return invalid("scores: expected " + std::to_string(request.rows * width) + " of them, got " +
                   std::to_string(request.scores.size()));
  return std::nullopt;
}

// --- what is known -------------------------------------------------------------------------------

LevelName BeamQuery::name_of(uint64_t flat, uint32_t level) const {
  const Grid& grid = request_.grid;
  LevelName name{grid.prefix.prefix, 0, grid.coordinates(flat * below_[level])};
  name.depth = static_cast<uint32_t>(name.tuple.size());
  name.tuple.resize(grid.prefix.coordinates.size() + level);
  return name;
}

bool BeamQuery::concerns(const LevelName& name) const {
  const ExpertUid& prefix = request_.grid.prefix;
  const size_t lead = prefix.coordinates.size();
  return name.prefix == prefix.prefix && name.depth == lead + views_.size() &&
         name.tuple.size() >= lead &&
         std::equal(prefix.coordinates.begin(), prefix.coordinates.end(), name.tuple.begin());
}

void BeamQuery::forget(const LevelName& name) {
  if (!concerns(name))
    return;
  const size_t lead = request_.grid.prefix.coordinates.size();
  const size_t level = name.tuple.size() - lead;
  if (level == 0) { // it decides which records count
    root_known_ = false;
    for (auto& views : views_)
      views.clear();
    return;
  }
  uint64_t flat = 0;
  for (size_t axis = 0; axis < level; ++axis)
    flat = flat * request_.grid.size[axis] + name.tuple[lead + axis];
  views_[level].erase(flat);
}

bool BeamQuery::usable(const PublicKey& owner, const LevelCache::Held& held) const {
  if (held.expiry_ms <= wall_ || suspect_(owner, held.level.boot_id))
    return false;
  const auto incarnation = incarnations_.find(owner); // left over from an earlier one?
  return incarnation == incarnations_.end() || incarnation->second.boot_id == held.level.boot_id ||
         held.seq > incarnation->second.seq;
}

void BeamQuery::learn_root(const LevelCache::Records& records) {
  root_known_ = true;
  incarnations_.clear();
  for (const auto& [place, held] : records) {
    Incarnation& incarnation = incarnations_[place.first];
    if (!held.level.groups.empty() && held.seq > incarnation.seq)
      incarnation = {held.seq, held.level.boot_id};
  }
  std::map<uint64_t, uint64_t> counts;
  for (const auto& [place, held] : records)
    if (usable(place.first, held))
      for (const LevelGroup& group : held.level.groups)
        counts[group.schema_hash] += group.experts;
  schema_ = declared_ = other_schemas_ = 0;
  for (const auto& [schema, count] : counts) {
    other_schemas_ += count;
    if (count > declared_) { // ties go to the lower hash
      declared_ = count;
      schema_ = schema;
    }
  }
  other_schemas_ -= declared_;
}

BeamQuery::View BeamQuery::make_view(const LevelCache::Records* records, uint32_t level) const {
  View view;
  if (records == nullptr)
    return view;
  view.known = true;
  for (const auto& [place, held] : *records)
    if (usable(place.first, held) && (level + 1 < views_.size() || held.level.address))
      for (const LevelGroup& group : held.level.groups)
        if (!root_known_ || group.schema_hash == schema_)
          view.next.insert(view.next.end(), group.next.begin(), group.next.end());
  view.next = united(std::move(view.next), request_.grid.size[level]);
  return view;
}

const BeamQuery::View& BeamQuery::view(uint64_t flat, uint32_t level) {
  const auto found = views_[level].find(flat);
  if (found != views_[level].end())
    return found->second;
  const LevelCache::Records* records = find_(name_of(flat, level));
  if (level == 0 && records != nullptr)
    learn_root(*records);
  return views_[level].emplace(flat, make_view(records, level)).first->second;
}

void BeamQuery::want(uint64_t flat, uint32_t level, size_t rank) {
  row_done_ = false;
  wanted_[{level, flat}] += 1.0 / static_cast<double>(1 + rank);
}

// --- the search ----------------------------------------------------------------------------------

std::vector<LevelName> BeamQuery::run(WallMs wall) {
  wall_ = wall;
  wanted_.clear();
  if (!view(0, 0).known)
    wanted_[{0, 0}] = HUGE_VAL;
  for (size_t row = 0; row < request_.rows; ++row)
    if (!done_[row])
      run_row(row);
  std::vector<std::pair<double, std::pair<uint32_t, uint64_t>>> order;
  for (const auto& [tuple, weight] : wanted_)
    order.push_back({-weight, tuple});
  std::sort(order.begin(), order.end());
  std::vector<LevelName> names;
  for (const auto& [weight, tuple] : order)
    names.push_back(name_of(tuple.second, tuple.first));
  return names;
}

bool BeamQuery::worse(const Candidate& a, const Candidate& b) const {
  if (a.bound != b.bound)
    return a.bound < b.bound;
  const uint64_t first_a = a.flat * below_[a.level];
  const uint64_t first_b = b.flat * below_[b.level];
  return first_a != first_b ? first_a > first_b : a.level > b.level;
}

// May an expert below the tuple enter `best`?
bool BeamQuery::improves(const Candidate& tuple, const std::vector<Best>& best) const {
  if (best.size() < request_.k || tuple.bound > best.back().score)
    return true;
  return tuple.bound == best.back().score && tuple.flat * below_[tuple.level] < best.back().flat_id;
}

void BeamQuery::run_row(size_t row) {
  RowScores scores{request_.scores.data() + row * axis_.back(), {}};
  for (size_t axis = 0; axis + 1 < axis_.size(); ++axis) {
    float most = -HUGE_VALF;
    for (size_t i = axis_[axis]; i < axis_[axis + 1]; ++i)
      if (std::isfinite(scores.scores[i]))
        most = std::max(most, scores.scores[i]);
    scores.most.push_back(most);
  }
  std::vector<Best>& best = best_[row];
  best.clear();
  done_[row] = true;
  if (std::find(scores.most.begin(), scores.most.end(), -HUGE_VALF) != scores.most.end())
    return; // an axis without any score leaves no expert
  row_done_ = true;
  std::vector<size_t> looked(views_.size(), 0); // below how many tuples of each length
  std::vector<size_t> missing(views_.size(), 0);
  const auto order = [this](const Candidate& a, const Candidate& b) { return worse(a, b); };
  heap_.assign(1, {scores.bound(0, 0), 0, 0, 0});
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), order);
    const Candidate tuple = heap_.back();
    heap_.pop_back();
    if (!improves(tuple, best))
      break; // nor does any other: they come in order
    if (looked[tuple.level] == request_.beam)
      continue;
    const View& below = view(tuple.flat, tuple.level);
    if (!below.known)
      want(tuple.flat, tuple.level, missing[tuple.level]++);
    looked[tuple.level] += !below.known || !below.next.empty();
    if (below.known)
      look_below(scores, tuple, below, best);
    else if (tuple.level == 0) // reads ahead what the root may turn out to hold
      look_below(scores, tuple, {true, {{0, request_.grid.size[0] - 1}}}, best);
  }
  done_[row] = row_done_;
}

void BeamQuery::look_below(const RowScores& scores, const Candidate& tuple, const View& view,
                           std::vector<Best>& best) {
  const uint32_t level = tuple.level;
  const float* axis = scores.scores + axis_[level];
  const uint64_t flat = tuple.flat * request_.grid.size[level];
  const bool last = level + 1 == views_.size();
  if (last && level == 0 && !root_known_)
    return; // nothing is below it but experts nobody has told of
  const bool first = heap_.empty();
  const auto order = [this](const Candidate& a, const Candidate& b) { return worse(a, b); };
  for (const CoordinateRange& range : view.next)
    for (uint32_t i = range.first; i <= range.last; ++i) {
      const float score = level == 0 ? axis[i] : tuple.score + axis[i];
      if (!std::isfinite(score))
        continue;
      const Candidate next{last ? score : scores.bound(score, level + 1), score, flat + i,
                           level + 1};
      if (!improves(next, best))
        continue;
      if (!last) {
        heap_.push_back(next);
        if (!first)
          std::push_heap(heap_.begin(), heap_.end(), order);
        continue;
      }
      const auto place =
          std::upper_bound(best.begin(), best.end(), next, [](const Candidate& a, const Best& b) {
            return a.score != b.score ? a.score > b.score : a.flat < b.flat_id;
          });
      best.insert(place, {score, flat + i});
      if (best.size() > request_.k)
        best.pop_back();
    }
  if (first)
    std::make_heap(heap_.begin(), heap_.end(), order);
}

// --- what comes out ------------------------------------------------------------------------------

std::vector<BeamQuery::Holder> BeamQuery::holders_of(uint64_t flat_id, uint32_t coordinate) const {
  std::vector<Holder> holders;
  const auto level = static_cast<uint32_t>(views_.size() - 1);
  const LevelCache::Records* records = find_(name_of(flat_id / request_.grid.size[level], level));
  if (records == nullptr)
    return holders;
  for (const auto& [place, held] : *records)
    if (held.level.address && usable(place.first, held))
      for (const LevelGroup& group : held.level.groups)
        if (group.schema_hash == schema_ && contains(group.next, coordinate))
          holders.push_back({&place.first, &held.level});
  return holders;
}

BeamResult BeamQuery::result(WallMs wall) {
  wall_ = wall;
  BeamResult result;
  result.declared = declared_;
  result.other_schemas = other_schemas_;
  result.unread = wanted_.size();
  result.chosen.assign(request_.rows * request_.k, -1);
  std::map<uint64_t, int32_t> experts; // -1: gone meanwhile
  if (root_known_)                     // else nobody knows which schema counts
    for (const std::vector<Best>& row : best_)
      for (const Best& best : row)
        experts[best.flat_id] = -1;
  std::map<std::pair<PublicKey, uint64_t>, uint32_t> servers; // by owner and boot id
  for (auto& [flat_id, index] : experts) {
    const Coordinates coordinates = request_.grid.coordinates(flat_id);
    std::vector<std::pair<uint64_t, uint32_t>> holders; // by this trainer's preference
    for (const auto& [owner, record] : holders_of(flat_id, coordinates.back())) {
      const auto [server, fresh] = servers.try_emplace(
          {*owner, record->boot_id}, static_cast<uint32_t>(result.servers.size()));
      if (fresh)
        result.servers.push_back({*owner, *record->address, record->boot_id});
      holders.push_back({Preference(trainer_, *owner).rank(coordinates), server->second});
    }
    if (holders.empty())
      continue;
    std::sort(holders.begin(), holders.end());
    holders.erase(std::unique(holders.begin(), holders.end()), holders.end());
    holders.resize(std::min(holders.size(), Limits::kExpertReplicas + 1));
    index = static_cast<int32_t>(result.experts.size());
    BeamResult::Expert expert{flat_id, holders.front().second, {}};
    for (size_t i = 1; i < holders.size(); ++i)
      expert.replicas.push_back(holders[i].second);
    result.experts.push_back(std::move(expert));
  }
  for (size_t row = 0; row < best_.size(); ++row) {
    size_t at = row * request_.k;
    for (const Best& best : best_[row])
      if (const auto expert = experts.find(best.flat_id);
          expert != experts.end() && expert->second >= 0)
        result.chosen[at++] = expert->second;
  }
  return result;
}

} // namespace lah::dht
