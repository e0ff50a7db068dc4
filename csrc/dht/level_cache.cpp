#include "dht/level_cache.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
constexpr Duration kTick = kSecond;
constexpr Duration kReadDeadline = 5 * kSecond;
} // namespace

LevelCache::LevelCache(Node& node, OnRead on_read) : node_(node), on_read_(std::move(on_read)) {
  node_.add_task(*this);
}

LevelCache::~LevelCache() {
  node_.remove_task(*this);
}

bool LevelCache::has_live(const Entry& entry, WallMs wall) {
  return std::any_of(entry.records.begin(), entry.records.end(), [&](const auto& record) {
    return record.second.expiry_ms > wall && !record.second.level.groups.empty();
  });
}

const LevelCache::Records* LevelCache::find(const LevelName& name) {
  const auto found = entries_.find(name);
  if (found == entries_.end())
    return nullptr;
  Entry& entry = found->second;
  entry.used_at = node_.time();
  const Duration absent = name.tuple.empty() ? kAbsentPrefix : kAbsent;
  const bool told = entry.read_at != kNever &&
                    (entry.read_at + absent > node_.time() || has_live(entry, node_.wall()));
  return told ? &entry.records : nullptr;
}

bool LevelCache::reading(const LevelName& name) const {
  const auto found = entries_.find(name);
  return found != entries_.end() && found->second.open > 0;
}

void LevelCache::read(Time now, WallMs wall, const LevelName& name) {
  if (reading(name))
    return;
  if (!entries_.contains(name))
    make_room();
  Entry& entry = entries_[name];
  entry.used_at = now;
  entry.asked = 0;
  entry.failed = false;
  ++reads_;
  ask(now, wall, name, entry, level_slots(name));
}

void LevelCache::ask(Time now, WallMs wall, const LevelName& name, Entry& entry, size_t indices) {
  // Somebody waits for the first reading; what three replicas miss comes with the next one.
  const Consistency consistency =
      entry.read_at == kNever ? Consistency::kQuorum : Consistency::kAll;
  while (entry.asked < indices) {
    const size_t index = entry.asked++;
    ++entry.open;
    node_.start_get(
        now, wall, level_key(name, index), now + kReadDeadline,
        [this, name, index](const GetResult& result) { on_records(name, index, result); },
        consistency);
  }
}

void LevelCache::on_records(const LevelName& name, size_t index, const GetResult& result) {
  Entry& entry = entries_.at(name); // entries being read are never let go
  for (const Record& record : result.records) {
    Held& held = entry.records[{record.owner, index}];
    // Nobody but itself decides in which slot an owner is looked for.
    if (held.seq >= record.seq || index % level_slots(name) != level_slot(name, record.owner))
      continue;
    const auto level = decode_level(record.payload);
    held = {record.seq, record.expiry_ms, level ? *level : LevelRecord{}};
  }
  // Where peers are known, a get that none of them answered has read nothing, however soon it
  // ended.
  const bool unheard =
      result.answered == 0 && (node_.table().size() > 0 || node_.status().isolated);
  entry.failed |= !result.complete || unheard;
  const WallMs wall = node_.wall();
  std::erase_if(entry.records, [&](const auto& held) { return held.second.expiry_ms <= wall; });
  size_t parts = 1;
  for (const auto& [owner, held] : entry.records)
    parts = std::max<size_t>(parts, held.level.parts);
  ask(node_.time(), wall, name, entry, parts * level_slots(name));
  if (--entry.open > 0)
    return;
  --reads_;
  const bool read = !entry.failed || has_live(entry, wall);
  if (read)
    entry.read_at = node_.time();
  on_read_(name, read);
}

void LevelCache::on_timer(Time now, WallMs wall) {
  if (now < next_tick_)
    return;
  next_tick_ = now + kTick;
  for (auto entry = entries_.begin(); entry != entries_.end();)
    if (entry->second.open == 0 && entry->second.used_at + kHot <= now)
      entry = entries_.erase(entry);
    else
      ++entry;
  for (const auto& [name, entry] : entries_)
    if (entry.open == 0 && reads_ < Limits::kLevelReads && entry.read_at != kNever &&
        entry.read_at + kRefresh <= now &&
        entry.used_at + kHot > now + kReadDeadline) { // else it is about to be let go
      const Time used_at = entry.used_at;
      read(now, wall, name);
      entries_.at(name).used_at = used_at; // our own reading is no use of it
    }
}

// Lets the tuple go that was not used for longest.
void LevelCache::make_room() {
  if (entries_.size() < Limits::kCachedLevels)
    return;
  auto oldest = entries_.end();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
    if (entry->second.open == 0 &&
        (oldest == entries_.end() || entry->second.used_at < oldest->second.used_at))
      oldest = entry;
  if (oldest != entries_.end())
    entries_.erase(oldest);
}

} // namespace lah::dht
