#include "dht/storage.hpp"

namespace lah::dht {
namespace {
// Map nodes, indexes and signatures: what a record costs beside its payload.
constexpr size_t kRecordOverhead = 320;

size_t cost(const Record& record) {
  return record.payload.size() + kRecordOverhead;
}
} // namespace

Storage::PutResult Storage::put(const Record& record, WallMs wall, RecordVerifier& verifier) {
  const auto found = keys_.find(record.key);
  const Owned* owned = found == keys_.end() ? nullptr : &found->second;
  const auto held = owned == nullptr ? Owned::const_iterator{} : owned->find(record.owner);
  const Record* old = owned != nullptr && held != owned->end() ? &held->second : nullptr;
  const uint64_t old_seq = old == nullptr ? 0 : old->seq;

  if (record.payload.size() > Limits::kRecordPayloadBytes)
    return {Verdict::kTooBig, old_seq};
  if (record.expiry_ms <= wall)
    return {Verdict::kExpired, old_seq};
  if (record.expiry_ms > wall + Limits::kRecordLifetimeMs)
    return {Verdict::kTooLong, old_seq};
  if (old != nullptr && record == *old)
    return {Verdict::kKept, old_seq};
  if (old != nullptr && record.seq <= old_seq)
    return {Verdict::kStale, old_seq};
  if (old == nullptr && !has_room(record, owned))
    return {Verdict::kFull, old_seq};
  if (!verifier.verify(record))
    return {Verdict::kBadSignature, old_seq};

  if (old != nullptr) {
    bytes_ -= cost(*old);
    expiries_.erase({old->expiry_ms, old->key, old->owner});
  } else {
    ++per_owner_[record.owner];
  }
  bytes_ += cost(record);
  expiries_.insert({record.expiry_ms, record.key, record.owner});
  keys_[record.key].insert_or_assign(record.owner, record);
  return {Verdict::kStored, record.seq};
}

bool Storage::has_room(const Record& record, const Owned* owned) const {
  const auto mine = per_owner_.find(record.owner);
  return expiries_.size() < Limits::kStoredRecords &&
         bytes_ + cost(record) <= Limits::kStoredBytes &&
         (owned == nullptr || owned->size() < Limits::kRecordsPerKey) &&
         (mine == per_owner_.end() || mine->second < Limits::kRecordsPerOwner);
}

Storage::Page Storage::page(const Id& key, const PublicKey* after, WallMs wall, size_t budget,
                            size_t overhead) const {
  Page page;
  const auto found = keys_.find(key);
  if (found == keys_.end())
    return page;
  const Owned& owned = found->second;
  for (auto it = after == nullptr ? owned.begin() : owned.upper_bound(*after); it != owned.end();
       ++it) {
    const Record& record = it->second;
    if (record.expiry_ms <= wall)
      continue;
    const size_t size = record.payload.size() + overhead;
    if (size > budget) {
      page.more = true;
      break;
    }
    budget -= size;
    page.records.push_back(&record);
  }
  return page;
}

std::vector<Record> Storage::get(const Id& key, WallMs wall) const {
  std::vector<Record> records;
  for (const Record* record : page(key, nullptr, wall, SIZE_MAX, 0).records)
    records.push_back(*record);
  return records;
}

std::vector<Record> Storage::owned_by(const PublicKey& owner, size_t most) const {
  std::vector<Record> records;
  for (auto expiry = expiries_.rbegin(); expiry != expiries_.rend(); ++expiry)
    if (expiry->owner == owner && records.size() < most)
      records.push_back(keys_.at(expiry->key).at(owner));
  return records;
}

void Storage::expire(WallMs wall) {
  while (!expiries_.empty() && expiries_.begin()->at <= wall) {
    const Expiry oldest = *expiries_.begin();
    expiries_.erase(expiries_.begin());
    const auto found = keys_.find(oldest.key);
    const auto record = found->second.find(oldest.owner);
    bytes_ -= cost(record->second);
    found->second.erase(record);
    if (found->second.empty())
      keys_.erase(found);
    if (--per_owner_[oldest.owner] == 0)
      per_owner_.erase(oldest.owner);
  }
}

WallMs Storage::next_expiry() const {
  return expiries_.empty() ? UINT64_MAX : expiries_.begin()->at;
}

} // namespace lah::dht
