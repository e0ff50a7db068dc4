#include "dht/listeners.hpp"

#include <algorithm>

#include "crypto/sealed_packet.hpp"
#include "dht/record_digest.hpp"

namespace lah::dht {
namespace {
// A digest may be this old where nothing but expiry can have changed it.
constexpr Duration kDigestAge = 5 * kSecond;
constexpr size_t kFailures = 2; // in a row, and the listener is gone
constexpr size_t kRoom = Limits::kDatagramBytes - crypto::kPacketOverhead - kNotifyWireBytes;
constexpr size_t kListMax = 64; // elements of one list of a message
} // namespace

// --- who listens ---------------------------------------------------------------------------------

bool Listeners::has_room(const Id& key) const {
  const auto topic = topics_.find(key);
  return size_ < Limits::kListeners &&
         (topic == topics_.end() || topic->second.listeners.size() < Limits::kListenersPerKey);
}

bool Listeners::has_room(const Endpoint& endpoint) const {
  const auto subnet = subnets_.find(subnet_of(endpoint));
  return endpoint.is_private() || subnet == subnets_.end() ||
         subnet->second < Limits::kListenersPerSubnet;
}

void Listeners::occupy(const Endpoint& endpoint) {
  if (!endpoint.is_private())
    ++subnets_[subnet_of(endpoint)];
}

void Listeners::vacate(const Endpoint& endpoint) {
  if (endpoint.is_private())
    return;
  const auto subnet = subnets_.find(subnet_of(endpoint));
  if (--subnet->second == 0)
    subnets_.erase(subnet);
}

ListenReply Listeners::listen(Time now, WallMs wall, const Contact& contact,
                              const ListenRequest& request, const Storage& storage) {
  const auto known = topics_.find(request.key);
  const bool renewal = known != topics_.end() && known->second.listeners.contains(contact.key);
  if (request.lifetime_ms == 0) {
    if (renewal)
      drop(request.key, contact.key);
    return {};
  }
  const bool moves =
      !renewal || subnet_of(known->second.listeners.at(contact.key).contact.endpoint) !=
                      subnet_of(contact.endpoint);
  if ((!renewal && !has_room(request.key)) || (moves && !has_room(contact.endpoint)))
    return {};
  Topic& topic = topics_[request.key];
  Listener& listener = topic.listeners[contact.key];
  if (renewal)
    vacate(listener.contact.endpoint);
  occupy(contact.endpoint);
  if (!renewal) {
    listener.told = listener.since = topic.version; // what is older it reads for itself
    ++size_;
  }
  listener.contact = contact;
  if (renewal && request.refreshes && !listener.refreshes) {
    listener.told = 0; // who told it until now may have stopped long ago
    schedule(request.key, listener, now);
  }
  listener.refreshes = request.refreshes;
  listener.until = now + milliseconds(static_cast<int64_t>(request.lifetime_ms));
  listener.heard_at = now;
  listener.failures = 0;
  if (next_sweep_ == kNever)
    next_sweep_ = now + milliseconds(Limits::kListenMs);
  update_digest(now, wall, request.key, topic, storage);
  return {request.lifetime_ms, topic.digest};
}

void Listeners::update_digest(Time now, WallMs wall, const Id& key, Topic& topic,
                              const Storage& storage) {
  if (topic.digest_of == topic.changed && now < topic.digest_until)
    return;
  topic.digest = {};
  for (const Record& record : storage.get(key, wall))
    topic.digest[digest_sector(record.owner)] += content_hash(record);
  topic.digest_of = topic.changed;
  topic.digest_until = now + kDigestAge;
}

void Listeners::drop(const Id& key, const PublicKey& listener) {
  const auto topic = topics_.find(key);
  const auto found = topic->second.listeners.find(listener);
  unschedule(key, found->second);
  vacate(found->second.contact.endpoint);
  topic->second.listeners.erase(found);
  --size_;
  if (topic->second.listeners.empty())
    topics_.erase(topic);
}

void Listeners::sweep(Time now) {
  std::vector<Place> gone;
  for (const auto& [key, topic] : topics_)
    for (const auto& [name, listener] : topic.listeners)
      if (listener.until <= now)
        gone.push_back({key, name});
  for (const auto& [key, name] : gone)
    drop(key, name);
  next_sweep_ = size_ == 0 ? kNever : now + milliseconds(Limits::kListenMs);
}

// --- what they are told --------------------------------------------------------------------------

void Listeners::unschedule(const Id& key, Listener& listener) {
  due_.erase({listener.due, {key, listener.contact.key}});
  listener.due = kNever;
}

void Listeners::schedule(const Id& key, Listener& listener, Time at) {
  at = std::max(at, listener.pushed_at + kBatch);
  if (at >= listener.due)
    return;
  unschedule(key, listener);
  listener.due = at;
  due_.insert({at, {key, listener.contact.key}});
}

void Listeners::on_stored(Time now, WallMs wall, const Record& record, bool changed) {
  const auto found = topics_.find(record.key);
  if (found == topics_.end())
    return;
  Topic& topic = found->second;
  const uint64_t version = ++topic.version;
  Change change{record.owner, changed ? version : 0};
  if (const auto known = topic.versions.find(record.owner); known != topic.versions.end()) {
    const auto old = topic.log.find(known->second);
    change.changed = std::max(change.changed, old->second.changed);
    topic.log.erase(old);
  }
  topic.versions[record.owner] = version;
  topic.log[version] = change;
  if (topic.log.size() > Limits::kRecordsPerKey) { // of owners long gone
    topic.versions.erase(topic.log.begin()->second.owner);
    topic.log.erase(topic.log.begin());
  }
  if (changed)
    topic.changed = version;
  const uint64_t left_ms = record.expiry_ms - std::min(wall, record.expiry_ms);
  const Duration late = std::min(kRefreshDelay, milliseconds(static_cast<int64_t>(left_ms / 12)));
  for (auto& [name, listener] : topic.listeners)
    if (changed)
      schedule(record.key, listener, now);
    else if (listener.refreshes)
      schedule(record.key, listener, now + late);
}

std::optional<NotifyRequest> Listeners::next_notify(const Id& key, const Topic& topic,
                                                    Listener& listener, WallMs wall,
                                                    const Storage& storage) {
  NotifyRequest notify{key, {}, {}};
  size_t room = kRoom;
  const auto take_record = [&](const Record& record) {
    const size_t bytes = record_wire_bytes(record);
    if (bytes > room || notify.records.size() == kListMax)
      return false;
    room -= bytes;
    notify.records.push_back(record);
    return true;
  };
  while (!listener.missing.empty()) {
    const Record* record = storage.find(key, *listener.missing.begin());
    if (record != nullptr && record->expiry_ms > wall && !take_record(*record))
      return notify;
    listener.missing.erase(listener.missing.begin());
  }
  for (auto entry = topic.log.upper_bound(listener.told); entry != topic.log.end(); ++entry) {
    const auto& [version, change] = *entry;
    const Record* record = storage.find(key, change.owner);
    if (record != nullptr && record->expiry_ms > wall) {
      if (change.changed > listener.since) {
        if (!take_record(*record))
          break;
      } else if (listener.refreshes) {
        if (kRefreshWireBytes > room || notify.refreshes.size() == kListMax)
          break;
        room -= kRefreshWireBytes;
        notify.refreshes.push_back(
            {record->owner, record->seq, record->expiry_ms, record->signature});
      }
    }
    listener.told = version;
  }
  if (topic.log.upper_bound(listener.told) == topic.log.end())
    listener.since = listener.told;
  if (notify.records.empty() && notify.refreshes.empty())
    return std::nullopt;
  return notify;
}

std::vector<Listeners::Push> Listeners::take_due(Time now, WallMs wall, const Storage& storage) {
  std::vector<Push> pushes;
  if (now >= next_sweep_)
    sweep(now);
  while (!due_.empty() && due_.begin()->first <= now && in_flight_ < Limits::kNotifiesInFlight) {
    const auto [key, name] = due_.begin()->second;
    const Topic& topic = topics_.at(key);
    Listener& listener = topics_.at(key).listeners.at(name);
    unschedule(key, listener);
    if (listener.until <= now) {
      drop(key, name);
      continue;
    }
    listener.cut_off = true;
    while (listener.in_flight < Limits::kNotifyBurst) {
      const uint64_t from = listener.since;
      auto notify = next_notify(key, topic, listener, wall, storage);
      if (!notify) {
        listener.cut_off = false;
        break;
      }
      pushes.push_back({listener.contact, std::move(*notify), from, now});
      listener.pushed_at = now;
      ++listener.in_flight;
      ++in_flight_;
    }
  }
  return pushes;
}

void Listeners::on_pushed(Time now, const Push& push, const Reply* reply) {
  --in_flight_;
  const auto topic = topics_.find(push.body.key);
  if (topic == topics_.end())
    return;
  const auto found = topic->second.listeners.find(push.to.key);
  if (found == topic->second.listeners.end())
    return;
  Listener& listener = found->second;
  if (listener.in_flight > 0) // it may have left and come back meanwhile
    --listener.in_flight;
  const auto* answer = reply == nullptr ? nullptr : std::get_if<NotifyReply>(reply);
  if (answer != nullptr) {
    if (!answer->listening) {
      drop(push.body.key, push.to.key);
      return;
    }
    listener.failures = 0;
    listener.heard_at = now;
    for (const PublicKey& owner : answer->missing)
      if (listener.missing.size() < kListMax)
        listener.missing.insert(owner);
  } else {
    listener.since = std::min(listener.since, push.from_version);
    listener.told = listener.since;
    listener.cut_off = true;
    if (listener.heard_at < push.sent_at && ++listener.failures >= kFailures) {
      drop(push.body.key, push.to.key);
      return;
    }
  }
  if (listener.cut_off || !listener.missing.empty())
    schedule(push.body.key, listener, now);
}

Time Listeners::next_deadline() const {
  const Time due =
      due_.empty() || in_flight_ >= Limits::kNotifiesInFlight ? kNever : due_.begin()->first;
  return std::min(due, next_sweep_);
}

} // namespace lah::dht
