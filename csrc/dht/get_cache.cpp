#include "dht/get_cache.hpp"

#include <algorithm>

namespace lah::dht {
namespace {

size_t record_cost(const GetResult& result) {
  return std::max<size_t>(result.records.size(), 1);
}

size_t byte_cost(const GetResult& result) {
  size_t bytes = 160; // list and map nodes
  for (const Record& record : result.records)
    bytes += sizeof(Record) + record.payload.size();
  return bytes;
}

} // namespace

void GetCache::erase(Entries::iterator entry) {
  records_ -= record_cost(entry->result);
  bytes_ -= byte_cost(entry->result);
  by_key_.erase(entry->key);
  entries_.erase(entry);
}

void GetCache::forget(const Id& key) {
  if (const auto found = by_key_.find(key); found != by_key_.end())
    erase(found->second);
}

void GetCache::keep(const Id& key, Consistency consistency, Time now, const GetResult& result) {
  if (!result.complete)
    return;
  forget(key);
  entries_.push_front({key, consistency, now, result});
  by_key_.emplace(key, entries_.begin());
  records_ += record_cost(result);
  bytes_ += byte_cost(result);
  while (records_ > Limits::kCachedRecords || bytes_ > Limits::kCachedBytes)
    erase(std::prev(entries_.end()));
}

std::optional<GetResult> GetCache::find(const Id& key, Consistency consistency, Time now,
                                        WallMs wall, Duration max_age) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end() || found->second->consistency < consistency)
    return std::nullopt;
  const Entry& entry = *found->second;
  GetResult live = entry.result;
  std::erase_if(live.records, [&](const Record& record) { return record.expiry_ms <= wall; });
  if (live.records.empty())
    max_age = std::min(max_age, entry.result.records.empty() ? kAbsentAge : 0);
  if (max_age <= 0 || now - entry.found_at > max_age)
    return std::nullopt;
  entries_.splice(entries_.begin(), entries_, found->second);
  return live;
}

} // namespace lah::dht
