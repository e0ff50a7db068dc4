#include "dht/routing_table.hpp"

#include <algorithm>
#include <bit>
namespace lah::dht {
namespace {

uint32_t to_ms(Time time) {
  return static_cast<uint32_t>(time / kMillisecond);
}

bool bit_of(const Id& id, size_t bit) {
  return (id.words[bit / 64] >> (63 - bit % 64) & 1) != 0;
}

// `id` with its first `bits` bits kept and `fill` in all others.
Id with_tail(const Id& id, size_t bits, uint64_t fill) {
  Id result;
  for (size_t word = 0; word < id.words.size(); ++word) {
    const size_t kept = std::clamp(bits, 64 * word, 64 * word + 64) - 64 * word;
    const uint64_t mask = kept == 0 ? 0 : ~uint64_t{0} << (64 - kept);
    result.words[word] = (id.words[word] & mask) | (fill & ~mask);
  }
  return result;
}

// An answer that came too late to be timed never beats one that was.
Duration time_of(const RttEstimator& rtt) {
  return rtt.known() ? rtt.srtt() : kNever;
}

// An eighth less is noise, and who has been here longer is likelier to stay.
bool is_nearer(const RttEstimator& one, const RttEstimator& other) {
  return one.known() && (!other.known() || one.srtt() < other.srtt() / 8 * 7);
}

constexpr auto kById = [](const auto& entry, const Id& id) { return entry.id < id; };
constexpr size_t kSubnetOfBucket = 2;
constexpr size_t kSubnetOfTable = 4;

} // namespace

// Where a newcomer would go.
struct RoutingTable::Place {
  enum Kind : uint8_t {
    kNone,
    kFree,
    kReplaces, // the entry at `index`
    kContests, // the same, if the newcomer is nearer in time
  };
  Kind kind = kNone;
  size_t index = 0;
};

size_t RoutingTable::capacity(size_t bucket) const {
  constexpr std::array<size_t, 5> kLargeSizes{512, 512, 256, 128, 64};
  if (table_size_ == TableSize::kLarge)
    return bucket < kLargeSizes.size() ? kLargeSizes[bucket] : Limits::kBucket;
  return bucket < 4 ? size_t{256} >> bucket : Limits::kBucket;
}

RoutingTable::Bucket& RoutingTable::bucket_of(const Id& id) {
  const size_t index = index_of(id);
  if (buckets_.size() <= index)
    buckets_.resize(index + 1);
  return buckets_[index];
}

const RoutingTable::Entry* RoutingTable::find(const Id& id) const {
  const size_t index = index_of(id);
  if (index >= buckets_.size())
    return nullptr;
  const Entries& entries = buckets_[index].entries;
  const std::vector<uint64_t>& words = buckets_[index].words;
  const auto first = std::lower_bound(words.begin(), words.end(), id.words[0]);
  for (auto at = static_cast<size_t>(first - words.begin());
       at < words.size() && words[at] == id.words[0]; ++at)
    if (entries[at].id == id)
      return &entries[at];
  return nullptr;
}

std::span<const RoutingTable::Entry> RoutingTable::slot(size_t bucket, const Id& id) const {
  const Entries& entries = buckets_[bucket].entries;
  const size_t bits = bucket + 1 + static_cast<size_t>(std::countr_zero(capacity(bucket)));
  const auto begin =
      std::lower_bound(entries.begin(), entries.end(), with_tail(id, bits, 0), kById);
  const Id last = with_tail(id, bits, ~uint64_t{0});
  const auto end = std::find_if(begin, entries.end(), [&](const Entry& e) { return e.id > last; });
  return {begin, end};
}

// --- who gets in ---------------------------------------------------------------------------------

// One host, or one subnet, is one party: it may run many nodes, but not hold much of our table.
bool RoutingTable::is_diverse(const Contact& contact) const {
  if (contact.endpoint.is_private())
    return true;
  const Subnet subnet = subnet_of(contact.endpoint);
  if (!std::binary_search(subnets_.begin(), subnets_.end(), subnet))
    return true;
  const size_t own_bucket = index_of(contact.id);
  size_t in_table = 0;
  size_t in_bucket = 0;
  for (size_t i = 0; i < buckets_.size(); ++i)
    for (const Entry& entry : buckets_[i].entries) {
      if (entry.id == contact.id || subnet_of(entry.endpoint) != subnet)
        continue;
      if (entry.endpoint.ip == contact.endpoint.ip)
        return false;
      ++in_table;
      in_bucket += i == own_bucket;
    }
  return in_table < kSubnetOfTable && in_bucket < kSubnetOfBucket;
}

// Is this id, in this bucket, among the k closest to ourselves that we know?
bool RoutingTable::is_nearest(size_t bucket, const Id& id) const {
  size_t closer = 0;
  for (size_t i = bucket + 1; i < buckets_.size(); ++i)
    closer += buckets_[i].entries.size();
  if (closer >= Limits::kBucket)
    return false;
  const Id away = distance(id, own_);
  for (const Entry& entry : buckets_[bucket].entries)
    closer += distance(entry.id, own_) < away;
  return closer < Limits::kBucket;
}

RoutingTable::Place RoutingTable::place(const Contact& contact) const {
  const size_t index = index_of(contact.id);
  if (index >= buckets_.size() || buckets_[index].entries.size() < capacity(index))
    return {is_diverse(contact) ? Place::kFree : Place::kNone};
  const Entries& entries = buckets_[index].entries;
  const std::span<const Entry> held = slot(index, contact.id);
  Place found;
  if (is_nearest(index, contact.id)) {
    const auto farthest =
        std::max_element(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
          return distance(a.id, own_) < distance(b.id, own_);
        });
    found = {Place::kReplaces, static_cast<size_t>(farthest - entries.begin())};
  } else if (const Entry* slowest = worst(index, held.empty() ? crowd(index) : held)) {
    const bool contested = !held.empty() && slowest->failures == 0;
    found = {contested ? Place::kContests : Place::kReplaces,
             static_cast<size_t>(slowest - entries.data())};
  }
  return found.kind == Place::kNone || is_diverse(contact) ? found : Place{};
}

// The slot with the most entries.
std::span<const RoutingTable::Entry> RoutingTable::crowd(size_t bucket) const {
  const Entries& entries = buckets_[bucket].entries;
  std::span<const Entry> most;
  for (size_t i = 0; i < entries.size();) {
    const std::span<const Entry> held = slot(bucket, entries[i].id);
    if (held.size() > std::max<size_t>(most.size(), 1))
      most = held;
    i += held.size();
  }
  return most;
}

// The first to go: one that failed, else the slowest; never one of the closest to ourselves.
const RoutingTable::Entry* RoutingTable::worst(size_t bucket,
                                               std::span<const Entry> entries) const {
  const Entry* found = nullptr;
  for (const Entry& entry : entries)
    if (!is_nearest(bucket, entry.id) &&
        (found == nullptr || std::pair(entry.failures, time_of(entry.rtt)) >
                                 std::pair(found->failures, time_of(found->rtt))))
      found = &entry;
  return found;
}

bool RoutingTable::has_room(const Contact& contact) const {
  if (contact.id == own_ || contains(contact.id))
    return false;
  const Place::Kind kind = place(contact).kind;
  return kind == Place::kFree || kind == Place::kReplaces;
}

bool RoutingTable::wants(const Contact& contact) const {
  if (contact.id == own_ || contains(contact.id))
    return false;
  const Place found = place(contact);
  return found.kind != Place::kNone &&
         (found.kind != Place::kContests ||
          buckets_[index_of(contact.id)].entries[found.index].tried < kChoices);
}

void RoutingTable::insert(Bucket& bucket, const Entry& entry) {
  Entries& entries = bucket.entries;
  const auto place = std::lower_bound(entries.begin(), entries.end(), entry.id, kById);
  bucket.words.insert(bucket.words.begin() + (place - entries.begin()), entry.id.words[0]);
  entries.insert(place, entry);
  ++size_;
  if (entry.endpoint.is_private())
    return;
  const Subnet subnet = subnet_of(entry.endpoint);
  subnets_.insert(std::lower_bound(subnets_.begin(), subnets_.end(), subnet), subnet);
}

void RoutingTable::spare(Bucket& bucket, const Entry& entry) {
  std::erase_if(bucket.replacements, [&](const Entry& other) { return other.id == entry.id; });
  if (bucket.replacements.size() >= Limits::kReplacements)
    bucket.replacements.erase(bucket.replacements.begin());
  bucket.replacements.push_back(entry);
}

void RoutingTable::confirm(const Contact& contact, std::optional<Duration> rtt, Time now) {
  if (contact.id == own_)
    return;
  Entry* held = find(contact.id);
  if (held != nullptr && held->endpoint != contact.endpoint) {
    remove(contact.id); // it moved, and with it the subnet it counts for
    held = nullptr;
  }
  Entry fresh{contact.id, contact.key, contact.puzzle, contact.endpoint, 0, 1, {}, to_ms(now)};
  Entry& entry = held == nullptr ? fresh : *held;
  if (rtt)
    entry.rtt.sample(*rtt);
  else
    entry.rtt.back_off();
  entry.confirmed_ms = fresh.confirmed_ms;
  entry.failures = 0;
  if (held != nullptr)
    return;
  Bucket& bucket = bucket_of(contact.id);
  const Place found = place(contact);
  if (found.kind == Place::kNone)
    return;
  if (found.kind == Place::kFree) {
    insert(bucket, fresh);
    return;
  }
  Entry& other = bucket.entries[found.index];
  if (found.kind == Place::kContests) {
    fresh.tried = other.tried = static_cast<uint8_t>(std::min(other.tried + 1, 255));
    if (!is_nearer(fresh.rtt, other.rtt)) {
      spare(bucket, fresh);
      return;
    }
  }
  if (other.failures == 0)
    spare(bucket, other);
  remove(Id(other.id));
  insert(bucket, fresh);
}

bool RoutingTable::fail(const Contact& contact) {
  Bucket& bucket = bucket_of(contact.id);
  std::erase_if(bucket.replacements, [&](const Entry& entry) { return entry.id == contact.id; });
  Entry* entry = find(contact.id);
  if (entry == nullptr || entry->endpoint != contact.endpoint)
    return false; // a stranger, or its old address
  if (++entry->failures < 2)
    return false;
  remove(contact.id);
  while (!bucket.replacements.empty()) {
    const Entry next = bucket.replacements.back();
    bucket.replacements.pop_back();
    if (contains(next.id) || !is_diverse(next.contact()))
      continue;
    insert(bucket, next);
    break;
  }
  return true;
}

void RoutingTable::remove(const Id& id) {
  const Entry* entry = find(id);
  if (entry == nullptr)
    return;
  if (!entry->endpoint.is_private())
    subnets_.erase(std::lower_bound(subnets_.begin(), subnets_.end(), subnet_of(entry->endpoint)));
  Bucket& bucket = bucket_of(id);
  const auto place = entry - bucket.entries.data();
  bucket.words.erase(bucket.words.begin() + place);
  bucket.entries.erase(bucket.entries.begin() + place);
  --size_;
}

// --- whom to ask ---------------------------------------------------------------------------------

// The entries are in order of ids: where they first differ, one half of the range is closer to any
// target than the other.
void RoutingTable::append_closest(std::span<const Entry> entries, const Id& target, size_t count,
                                  std::vector<Contact>& result) {
  while (!entries.empty() && result.size() < count) {
    if (entries.size() == 1) {
      result.push_back(entries[0].contact());
      return;
    }
    const size_t bit = common_prefix(entries.front().id, entries.back().id);
    const auto middle = std::partition_point(
        entries.begin(), entries.end(), [&](const Entry& entry) { return !bit_of(entry.id, bit); });
    const std::span<const Entry> zeros(entries.begin(), middle);
    const std::span<const Entry> ones(middle, entries.end());
    const bool set = bit_of(target, bit);
    append_closest(set ? ones : zeros, target, count, result);
    entries = set ? zeros : ones;
  }
}

// Every bucket is closer to the target than the next in this order: the one the target falls into;
// of those that share more with us, first where the target departs from our id, with the rest in
// reverse; then those that share less and less.
std::vector<Contact> RoutingTable::closest(const Id& target, size_t count) const {
  std::vector<Contact> result;
  result.reserve(std::min(count, size_));
  const size_t shared = common_prefix(own_, target);
  const auto append = [&](size_t bucket) {
    if (bucket < buckets_.size() && result.size() < count)
      append_closest(buckets_[bucket].entries, target, count, result);
  };
  append(shared);
  for (size_t i = shared + 1; i < buckets_.size(); ++i)
    if (bit_of(own_, i) != bit_of(target, i))
      append(i);
  for (size_t i = buckets_.size(); i-- > shared + 1;)
    if (bit_of(own_, i) == bit_of(target, i))
      append(i);
  for (size_t i = std::min(shared, buckets_.size()); i-- > 0;)
    append(i);
  return result;
}

std::optional<Contact> RoutingTable::next_probe(Time before) {
  for (size_t buckets = 0; buckets <= buckets_.size(); ++buckets) {
    if (probed_bucket_ >= buckets_.size())
      probed_bucket_ = 0;
    if (size_ == 0)
      break;
    const Entries& entries = buckets_[probed_bucket_].entries;
    const auto next =
        std::upper_bound(entries.begin(), entries.end(), probed_,
                         [](const Id& id, const Entry& entry) { return id < entry.id; });
    if (next == entries.end()) {
      ++probed_bucket_;
      probed_ = {};
      continue;
    }
    probed_ = next->id;
    const auto age = static_cast<int32_t>(to_ms(before) - next->confirmed_ms);
    return age > 0 ? std::optional(next->contact()) : std::nullopt;
  }
  return std::nullopt;
}

void RoutingTable::touch(const Id& target, Time now) {
  const size_t index = common_prefix(own_, target);
  if (index < buckets_.size())
    buckets_[index].touched_at = now;
}

Id RoutingTable::random_in(size_t bucket, Rng& rng) const {
  std::array<uint8_t, 32> random{};
  rng.fill(std::as_writable_bytes(std::span(random)));
  Id target = Id::from_bytes(random);
  for (size_t bit = 0; bit <= bucket; ++bit) { // own prefix, then the opposite bit
    const uint64_t mask = uint64_t{1} << (63 - bit % 64);
    const bool set = bit_of(own_, bit) != (bit == bucket);
    target.words[bit / 64] = set ? target.words[bit / 64] | mask : target.words[bit / 64] & ~mask;
  }
  return target;
}

std::optional<Id> RoutingTable::refresh_target(Time before, Time now, Rng& rng) {
  for (size_t i = 0; i < buckets_.size(); ++i)
    if (buckets_[i].touched_at == Bucket::kNew) { // upkeep looks into its gaps at once
      buckets_[i].touched_at = now;
    } else if (buckets_[i].touched_at < before) {
      buckets_[i].touched_at = now;
      return random_in(i, rng);
    }
  return std::nullopt;
}

std::optional<Id> RoutingTable::gap(Rng& rng) const {
  size_t slots = 0;
  for (size_t i = 0; i < buckets_.size(); ++i)
    slots += capacity(i);
  size_t drawn = rng.below(slots);
  for (size_t i = 0; i < buckets_.size(); ++i) {
    if (drawn >= capacity(i)) {
      drawn -= capacity(i);
      continue;
    }
    const Id target = random_in(i, rng);
    const std::span<const Entry> held = slot(i, target);
    if (held.empty() || (held.size() == 1 && held[0].tried < kChoices))
      return target;
    break;
  }
  return std::nullopt;
}

} // namespace lah::dht
