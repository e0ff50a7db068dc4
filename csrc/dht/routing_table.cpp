#include "dht/routing_table.hpp"

#include <algorithm>

namespace lah::dht {

RoutingTable::Bucket& RoutingTable::bucket_of(const Id& id) {
  const size_t index = std::min<size_t>(common_prefix(own_, id), 255);
  if (buckets_.size() <= index)
    buckets_.resize(index + 1);
  return buckets_[index];
}

RoutingTable::Entry* RoutingTable::find(std::vector<Entry>& entries, const Id& id) {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const Entry& entry) { return entry.contact.id == id; });
  return found == entries.end() ? nullptr : &*found;
}

void RoutingTable::confirm(const Contact& contact, Time now) {
  if (contact.id == own_)
    return;
  Bucket& bucket = bucket_of(contact.id);
  const Entry fresh{contact, now, 0};
  if (Entry* entry = find(bucket.entries, contact.id)) {
    *entry = fresh;
    return;
  }
  const size_t room = capacity(common_prefix(own_, contact.id));
  if (bucket.entries.size() < room) {
    bucket.entries.push_back(fresh);
    ++size_;
  } else if (const auto failing =
                 std::find_if(bucket.entries.begin(), bucket.entries.end(),
                              [](const Entry& entry) { return entry.failures > 0; });
             failing != bucket.entries.end()) {
    *failing = fresh;
  } else {
    std::erase_if(bucket.replacements,
                  [&](const Entry& entry) { return entry.contact.id == contact.id; });
    if (bucket.replacements.size() >= Limits::kReplacements)
      bucket.replacements.erase(bucket.replacements.begin());
    bucket.replacements.push_back(fresh);
  }
}

bool RoutingTable::fail(const Contact& contact) {
  Bucket& bucket = bucket_of(contact.id);
  std::erase_if(bucket.replacements,
                [&](const Entry& entry) { return entry.contact.id == contact.id; });
  Entry* entry = find(bucket.entries, contact.id);
  if (entry == nullptr || entry->contact.endpoint != contact.endpoint)
    return false; // a stranger, or its old address
  if (++entry->failures < 2)
    return false;
  if (!bucket.replacements.empty()) {
    *entry = bucket.replacements.back();
    bucket.replacements.pop_back();
    return true;
  }
  *entry = bucket.entries.back();
  bucket.entries.pop_back();
  --size_;
  return true;
}

void RoutingTable::remove(const Id& id) {
  if (!contains(id))
    return;
  std::erase_if(bucket_of(id).entries, [&](const Entry& entry) { return entry.contact.id == id; });
  --size_;
}

bool RoutingTable::wants(const Contact& contact) const {
  if (contact.id == own_)
    return false;
  const size_t index = std::min<size_t>(common_prefix(own_, contact.id), 255);
  if (index >= buckets_.size())
    return true;
  const auto& entries = buckets_[index].entries;
  return entries.size() < capacity(index) && !contains(contact.id);
}

bool RoutingTable::contains(const Id& id) const {
  const size_t index = std::min<size_t>(common_prefix(own_, id), 255);
  if (index >= buckets_.size())
    return false;
  const auto& entries = buckets_[index].entries;
  return std::any_of(entries.begin(), entries.end(),
                     [&](const Entry& entry) { return entry.contact.id == id; });
}

std::vector<Contact> RoutingTable::closest(const Id& target, size_t count) const {
  std::vector<std::pair<Id, const Contact*>> ranked;
  ranked.reserve(size_);
  for (const Bucket& bucket : buckets_)
    for (const Entry& entry : bucket.entries)
      ranked.emplace_back(distance(entry.contact.id, target), &entry.contact);
  count = std::min(count, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(count),
                    ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Contact> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i)
    result.push_back(*ranked[i].second);
  return result;
}

std::optional<Contact> RoutingTable::stalest(Time before) const {
  const Entry* oldest = nullptr;
  for (const Bucket& bucket : buckets_)
    for (const Entry& entry : bucket.entries)
      if (entry.confirmed_at < before && (!oldest || entry.confirmed_at < oldest->confirmed_at))
        oldest = &entry;
  return oldest == nullptr ? std::nullopt : std::optional(oldest->contact);
}

void RoutingTable::touch(const Id& target, Time now) {
  const size_t index = common_prefix(own_, target);
  if (index < buckets_.size())
    buckets_[index].touched_at = now;
}

std::optional<Id> RoutingTable::refresh_target(Time before, Time now, Rng& rng) {
  for (size_t i = 0; i < buckets_.size(); ++i) {
    if (buckets_[i].touched_at >= before)
      continue;
    buckets_[i].touched_at = now;
    std::array<uint8_t, 32> random{};
    rng.fill(std::as_writable_bytes(std::span(random)));
    Id target = Id::from_bytes(random);
    for (size_t bit = 0; bit <= i; ++bit) { // own prefix, then the opposite bit
      const uint64_t mask = uint64_t{1} << (63 - bit % 64);
      const bool set = ((own_.words[bit / 64] & mask) != 0) != (bit == i);
      target.words[bit / 64] = set ? target.words[bit / 64] | mask : target.words[bit / 64] & ~mask;
    }
    return target;
  }
  return std::nullopt;
}

} // namespace lah::dht
