#include "dht/expert_search.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
constexpr Duration kCollectPerExpert = 8 * kMicrosecond; // half a second for the largest grid

// Calls `visit(group, part)` for every group of the owner's current declaration.
template <class Visit> void for_each_group(const PrefixReader::Owner& owner, Visit visit) {
  const PrefixReader::OwnedPart* first = owner.first();
  if (first == nullptr)
    return;
  for (const auto& [number, part] : owner.parts)
    if (number < first->declaration.parts && part.declaration.boot_id == first->declaration.boot_id)
      for (const DeclaredGroup& group : part.declaration.groups)
        visit(group, part);
}
} // namespace

ExpertSearch::ExpertSearch(Node& node) : node_(node) {
  node_.add_task(*this);
}

ExpertSearch::~ExpertSearch() {
  node_.remove_task(*this);
}

// --- background ----------------------------------------------------------------------------------

ExpertSearch::Reader& ExpertSearch::reader(Time now, const std::string& prefix) {
  if (readers_.size() >= Limits::kCachedPrefixes && !readers_.contains(prefix)) {
    auto oldest = readers_.end();
    for (auto it = readers_.begin(); it != readers_.end(); ++it)
      if (!it->second.prefix->listening() && !it->second.prefix->refreshing() &&
          (oldest == readers_.end() || it->second.used_at < oldest->second.used_at))
        oldest = it;
    if (oldest != readers_.end())
      readers_.erase(oldest);
  }
  Reader& found = readers_[prefix];
  if (found.prefix == nullptr)
    found.prefix = std::make_unique<PrefixReader>(node_, prefix);
  found.used_at = now;
  return found;
}

void ExpertSearch::watch(Time now, const Grid& grid, OnMap on_map) {
  PrefixReader& source = *reader(now, grid.prefix.prefix).prefix;
  source.listen([this, prefix = grid.prefix.prefix] { on_change(prefix); });
  Watch& watch = watches_.insert_or_assign(grid, Watch{std::move(on_map)}).first->second;
  if (source.complete())
    watch.rebuild_at = now;
}

void ExpertSearch::unwatch(const Grid& grid) {
  watches_.erase(grid);
  const std::string& prefix = grid.prefix.prefix;
  const auto source = readers_.find(prefix);
  if (source != readers_.end() && std::none_of(watches_.begin(), watches_.end(), [&](auto& watch) {
        return watch.first.prefix.prefix == prefix;
      }))
    source->second.prefix->ignore();
}

void ExpertSearch::on_timer(Time now, WallMs) {
  std::erase_if(suspects_, [&](const auto& entry) { return entry.second.until <= now; });
  for (auto& [grid, watch] : watches_)
    if (watch.rebuild_at <= now)
      rebuild(grid, watch);
}

Time ExpertSearch::next_deadline() const {
  Time next = kNever;
  for (const auto& [grid, watch] : watches_)
    next = std::min(next, watch.rebuild_at);
  return next;
}

// Changes of large grids are collected for a while: building their maps takes a while.
void ExpertSearch::on_change(const std::string& prefix) {
  for (auto& [grid, watch] : watches_) {
    if (grid.prefix.prefix != prefix)
      continue;
    const auto experts =
        static_cast<Duration>(watch.map == nullptr ? 0 : watch.map->experts.size());
    const Time at = watch.built_at + experts * kCollectPerExpert;
    if (at <= node_.time())
      rebuild(grid, watch);
    else
      watch.rebuild_at = std::min(watch.rebuild_at, at);
  }
}

void ExpertSearch::rebuild_all() {
  for (auto& [grid, watch] : watches_)
    if (watch.map != nullptr) // the first map waits until all is read
      rebuild(grid, watch);
}

void ExpertSearch::rebuild(const Grid& grid, Watch& watch) {
  PrefixReader& source = *readers_.at(grid.prefix.prefix).prefix;
  const WallMs wall = node_.wall();
  source.expire(wall);
  auto map = std::make_shared<AliveMap>(build_alive_map(
      grid, source, [this](const auto& owner, uint64_t boot) { return is_suspect(owner, boot); },
      node_.id()));
  watch.built_at = node_.time();
  const WallMs expiry = source.next_expiry();
  watch.rebuild_at = expiry == UINT64_MAX
                         ? kNever
                         : node_.time() + milliseconds(static_cast<int64_t>(expiry - wall));
  for (const auto& [owner, suspicion] : suspects_)
    watch.rebuild_at = std::min(watch.rebuild_at, suspicion.until);
  if (watch.map != nullptr && watch.map->same_content(*map))
    return;
  map->version = watch.map == nullptr ? 1 : watch.map->version + 1;
  watch.map = map;
  watch.on_map(watch.map);
}

// --- suspects ------------------------------------------------------------------------------------

void ExpertSearch::suspect(Time, const PublicKey& owner, std::optional<uint64_t> boot_id,
                           Time until) {
  if (suspects_.size() >= Limits::kSuspects && !suspects_.contains(owner))
    return;
  suspects_[owner] = {boot_id, until};
  rebuild_all();
}

void ExpertSearch::forgive(Time, const PublicKey& owner) {
  if (suspects_.erase(owner) > 0)
    rebuild_all();
}

bool ExpertSearch::is_suspect(const PublicKey& owner, uint64_t boot_id) const {
  const auto found = suspects_.find(owner);
  return found != suspects_.end() && found->second.until > node_.time() &&
         found->second.boot_id.value_or(boot_id) == boot_id;
}

// --- by uid --------------------------------------------------------------------------------------

void ExpertSearch::refresh_all(Time now, const std::vector<ExpertUid>& uids, bool whole,
                               Time deadline, std::function<void()> done) {
  std::set<std::string> prefixes;
  for (const ExpertUid& uid : uids)
    if (!knows(uid, whole))
      prefixes.insert(uid.prefix);
  std::vector<PrefixReader*> stale;
  for (const std::string& prefix : prefixes) {
    PrefixReader& source = *reader(now, prefix).prefix;
    if (source.refreshed_at() == kNever || source.refreshed_at() + kFresh <= now)
      stale.push_back(&source);
  }
  if (stale.empty()) {
    done();
    return;
  }
  auto open = std::make_shared<size_t>(stale.size());
  for (PrefixReader* source : stale)
    source->refresh(deadline, [open, done] {
      if (--*open == 0)
        done();
    });
}

bool ExpertSearch::knows(const ExpertUid& uid, bool whole) const {
  const auto source = readers_.find(uid.prefix);
  return source != readers_.end() && source->second.prefix->listening() &&
         (whole ? find_one(uid).has_value() : is_active(uid));
}

void ExpertSearch::find(Time now, WallMs, std::vector<ExpertUid> uids, Time deadline,
                        FindDone done) {
  refresh_all(now, uids, true, deadline, [this, uids, done = std::move(done)] {
    std::vector<std::optional<Found>> found;
    for (const ExpertUid& uid : uids)
      found.push_back(find_one(uid));
    done(std::move(found));
  });
}

void ExpertSearch::active(Time now, WallMs, std::vector<ExpertUid> prefixes, Time deadline,
                          ActiveDone done) {
  refresh_all(now, prefixes, false, deadline, [this, prefixes, done = std::move(done)] {
    std::vector<bool> active;
    for (const ExpertUid& prefix : prefixes)
      active.push_back(is_active(prefix));
    done(std::move(active));
  });
}

std::optional<ExpertSearch::Found> ExpertSearch::find_one(const ExpertUid& uid) const {
  const auto source = readers_.find(uid.prefix);
  if (source == readers_.end())
    return std::nullopt;
  std::optional<Found> best;
  uint64_t best_rank = 0;
  for (const auto& [key, owner] : source->second.prefix->owners())
    for_each_group(owner, [&, &key = key, &owner = owner](const DeclaredGroup& group,
                                                          const PrefixReader::OwnedPart& part) {
      const uint64_t boot_id = part.declaration.boot_id;
      const std::vector<Endpoint>& addresses = owner.first()->declaration.addresses;
      const uint64_t rank = Preference(node_.id(), key).rank(uid.coordinates);
      if ((best && rank >= best_rank) || part.expiry_ms <= node_.wall() || addresses.empty() ||
          is_suspect(key, boot_id) || group.depth != uid.coordinates.size() ||
          !std::binary_search(group.experts.begin(), group.experts.end(), uid.coordinates))
        return;
      best_rank = rank;
      best = Found{format_uid(uid.prefix, uid.coordinates), key, addresses.front(), boot_id};
    });
  return best;
}

bool ExpertSearch::is_active(const ExpertUid& prefix) const {
  const auto source = readers_.find(prefix.prefix);
  if (source == readers_.end())
    return false;
  const Coordinates& lead = prefix.coordinates;
  bool active = false;
  for (const auto& [key, owner] : source->second.prefix->owners())
    for_each_group(owner, [&, &key = key](const DeclaredGroup& group,
                                          const PrefixReader::OwnedPart& part) {
      if (active || part.expiry_ms <= node_.wall() || group.depth < lead.size() ||
          is_suspect(key, part.declaration.boot_id))
        return;
      // Sorted: the first expert not below `lead` starts with it, or none does.
      const auto first = std::lower_bound(group.experts.begin(), group.experts.end(), lead);
      active = first != group.experts.end() && std::equal(lead.begin(), lead.end(), first->begin());
    });
  return active;
}

} // namespace lah::dht
