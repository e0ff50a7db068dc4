#include "dht/storage.hpp"

#include <tuple>

namespace lah::dht {
namespace {
size_t certificate_bytes(const Record& record) { // on the wire
  return record.certificate.empty() ? 0 : record.certificate.size() + 2;
}
} // namespace

bool Storage::Sooner::operator()(const Held* a, const Held* b) const {
  return std::tie(a->record.expiry_ms, a->record.key, a->record.owner) <
         std::tie(b->record.expiry_ms, b->record.key, b->record.owner);
}

bool Storage::Nearer::operator()(const Held* a, const Held* b) const {
  const Id away_a = distance(own, a->record.key);
  const Id away_b = distance(own, b->record.key);
  return std::tie(away_a, a->record.owner) < std::tie(away_b, b->record.owner);
}

const Storage::Held* Storage::find_held(const Id& key, const PublicKey& owner) const {
  const auto found = keys_.find(key);
  if (found == keys_.end())
    return nullptr;
  const auto held = found->second.owned.find(owner);
  return held == found->second.owned.end() ? nullptr : &held->second;
}

Storage::PutResult Storage::put(const Record& record, const std::optional<Endpoint>& source,
                                WallMs wall, RecordVerifier& verifier) {
  const Held* old = find_held(record.key, record.owner);
  const uint64_t old_seq = old == nullptr ? 0 : old->record.seq;
  Verdict verdict = check(record, old, wall);
  if (verdict == Verdict::kStored && source) {
    if (!region_.contains(record.key))
      verdict = Verdict::kOutOfRegion;
    else if (!within_quotas(record, old, source))
      verdict = Verdict::kFull;
  }
  if (verdict != Verdict::kStored)
    return {verdict, old_seq};
  if (!verifier.verify(record))
    return {Verdict::kBadSignature, old_seq};
  if (source && !make_room(record, old, source))
    return {Verdict::kFull, old_seq};
  const bool changed =
      old == nullptr || old->record.expiry_ms <= wall || old->record.payload != record.payload;
  if (old != nullptr)
    erase(*old);
  insert(record, source);
  return {Verdict::kStored, record.seq, changed};
}

Verdict Storage::check(const Record& record, const Held* old, WallMs wall) const {
  if (record.payload.size() > Limits::kRecordPayloadBytes)
    return Verdict::kTooBig;
  if (record.expiry_ms <= wall)
    return Verdict::kExpired;
  if (record.expiry_ms > wall + Limits::kRecordLifetimeMs)
    return Verdict::kTooLong;
  if (old != nullptr && record == old->record)
    return Verdict::kKept;
  if (old != nullptr && record.seq <= old->record.seq)
    return Verdict::kStale;
  return Verdict::kStored;
}

// In a small network every node holds everything of everybody: what a large server declares must
// find room at one node there.
bool Storage::within_quotas(const Record& record, const Held* old,
                            const std::optional<Endpoint>& source) const {
  const bool large = region_.nodes() >= Limits::kLargeNetwork;
  const size_t added = counted_bytes(record);
  const size_t freed = old == nullptr ? 0 : counted_bytes(old->record);
  const size_t more = old == nullptr ? 1 : 0;
  if (const auto key = keys_.find(record.key); key != keys_.end())
    if (key->second.owned.size() + more > Limits::kRecordsPerKey ||
        key->second.bytes - freed + added > Limits::kBytesPerKey)
      return false;
  if (const auto owner = owners_.find(record.owner); owner != owners_.end()) {
    const size_t records = large ? Limits::kRecordsPerOwner : Limits::kRecordsPerOwnerSmall;
    const size_t bytes = large ? Limits::kBytesPerOwner : Limits::kBytesPerOwnerSmall;
    if (owner->second.records + more > records || owner->second.bytes - freed + added > bytes)
      return false;
  }
  if (source->is_private())
    return true;
  const Subnet subnet = subnet_of(*source);
  const bool same = old != nullptr && old->source && subnet_of(*old->source) == subnet;
  return used_by(subnet) - (same ? freed : 0) + added <= Limits::kBytesPerSubnet;
}

bool Storage::make_room(const Record& record, const Held* old,
                        const std::optional<Endpoint>& source) {
  const size_t freed = old == nullptr ? 0 : memory_bytes(old->record);
  while (bytes_ - freed + memory_bytes(record) > capacity_ ||
         (old == nullptr && records() >= Limits::kStoredRecords)) {
    const Held* loser = victim(record, old, subnet_of(*source));
    if (loser == nullptr)
      return false;
    erase(*loser);
  }
  return true;
}

const Storage::Held* Storage::victim(const Record& record, const Held* old,
                                     const Subnet& from) const {
  if (weights_.empty())
    return nullptr;
  const auto& [weight, subnet] = *weights_.rbegin();
  const auto& held = sources_.at(subnet).held;
  auto farthest = held.rbegin();
  if (*farthest == old && ++farthest == held.rend())
    return nullptr;
  const Record& loser = (*farthest)->record;
  if (distance(own_, record.key) < distance(own_, loser.key))
    return *farthest;
  const bool lighter = used_by(from) + counted_bytes(record) < weight;
  return lighter ? *farthest : nullptr;
}

size_t Storage::used_by(const Subnet& subnet) const {
  const auto found = sources_.find(subnet);
  return found == sources_.end() ? 0 : found->second.bytes;
}

void Storage::reweigh(const Subnet& subnet, size_t before, size_t after) {
  weights_.erase({before, subnet});
  if (after > 0)
    weights_.insert({after, subnet});
}

void Storage::insert(const Record& record, const std::optional<Endpoint>& source) {
  Key& key = keys_[record.key];
  const Held& held = key.owned.emplace(record.owner, Held{record, source}).first->second;
  const size_t counted = counted_bytes(record);
  key.bytes += counted;
  Owner& owner = owners_[record.owner];
  ++owner.records;
  owner.bytes += counted;
  expiries_.insert(&held);
  bytes_ += memory_bytes(record);
  if (!source)
    return;
  const Subnet subnet = subnet_of(*source);
  Source& from =
      sources_.try_emplace(subnet, Source{std::set<const Held*, Nearer>({own_}), 0}).first->second;
  from.held.insert(&held);
  reweigh(subnet, from.bytes, from.bytes + counted);
  from.bytes += counted;
}

void Storage::erase(const Held& held) {
  const size_t counted = counted_bytes(held.record);
  bytes_ -= memory_bytes(held.record);
  expiries_.erase(&held);
  if (held.source) {
    const auto from = sources_.find(subnet_of(*held.source));
    from->second.held.erase(&held);
    reweigh(from->first, from->second.bytes, from->second.bytes - counted);
    from->second.bytes -= counted;
    if (from->second.held.empty())
      sources_.erase(from);
  }
  const auto owner = owners_.find(held.record.owner);
  owner->second.bytes -= counted;
  if (--owner->second.records == 0)
    owners_.erase(owner);
  const auto key = keys_.find(held.record.key);
  key->second.bytes -= counted;
  key->second.owned.erase(PublicKey(held.record.owner)); // and with it `held`
  if (key->second.owned.empty())
    keys_.erase(key);
}

Storage::Page Storage::page(const Id& key, const PublicKey* after, WallMs wall, size_t budget,
                            size_t overhead) const {
  Page page;
  const auto found = keys_.find(key);
  if (found == keys_.end())
    return page;
  const Owned& owned = found->second.owned;
  for (auto it = after == nullptr ? owned.begin() : owned.upper_bound(*after); it != owned.end();
       ++it) {
    const Record& record = it->second.record;
    if (record.expiry_ms <= wall)
      continue;
    const size_t size = record.payload.size() + certificate_bytes(record) + overhead;
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
    if ((*expiry)->record.owner == owner && records.size() < most)
      records.push_back((*expiry)->record);
  return records;
}

const Record* Storage::find(const Id& key, const PublicKey& owner) const {
  const Held* held = find_held(key, owner);
  return held == nullptr ? nullptr : &held->record;
}

void Storage::expire(WallMs wall) {
  while (!expiries_.empty() && (*expiries_.begin())->record.expiry_ms <= wall)
    erase(**expiries_.begin());
}

WallMs Storage::next_expiry() const {
  return expiries_.empty() ? UINT64_MAX : (*expiries_.begin())->record.expiry_ms;
}

} // namespace lah::dht
