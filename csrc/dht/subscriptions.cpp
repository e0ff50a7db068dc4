#include "dht/subscriptions.hpp"

#include <algorithm>

#include "dht/node.hpp"

namespace lah::dht {

Subscriptions::Topic* Subscriptions::find(const Id& key, uint64_t generation) {
  const auto found = topics_.find(key);
  return found == topics_.end() || found->second.generation != generation ? nullptr
                                                                          : &found->second;
}

std::optional<ListenId> Subscriptions::add(const Id& key, OnEvent on_event) {
  auto found = topics_.find(key);
  if (found == topics_.end()) {
    if (topics_.size() >= Limits::kSubscriptions)
      return std::nullopt;
    const uint64_t generation = ++last_generation_;
    // Whoever looks for its subscription has something new for it.
    const auto find_it = [this, key, generation]() -> Subscription* {
      Topic* topic = find(key, generation);
      if (topic == nullptr)
        return nullptr;
      news_.insert(key);
      return topic->subscription.get();
    };
    found = topics_.emplace(key, Topic{generation, nullptr, {}}).first;
    found->second.subscription = std::make_unique<Subscription>(node_, key, find_it);
  }
  const ListenId id = ++last_id_;
  keys_[id] = key;
  found->second.listeners[id] = std::move(on_event);
  if (found->second.subscription->told()) {
    found->second.strangers.push_back(id);
    news_.insert(key);
  }
  return id;
}

void Subscriptions::remove(ListenId id) {
  const auto key = keys_.find(id);
  if (key == keys_.end())
    return;
  const auto topic = topics_.find(key->second);
  keys_.erase(key);
  topic->second.listeners.erase(id);
  std::erase(topic->second.strangers, id);
  if (!topic->second.listeners.empty())
    return;
  topic->second.subscription->stop();
  topics_.erase(topic);
}

void Subscriptions::clear() {
  topics_.clear();
  keys_.clear();
  news_.clear();
}

NotifyReply Subscriptions::on_notify(const Contact& from, const NotifyRequest& notify) {
  const auto found = topics_.find(notify.key);
  if (found == topics_.end())
    return {};
  news_.insert(notify.key);
  return found->second.subscription->on_notify(from, notify).value_or(NotifyReply{});
}

void Subscriptions::on_stored(const Record& record) {
  const auto found = topics_.find(record.key);
  if (found == topics_.end())
    return;
  news_.insert(record.key);
  found->second.subscription->on_stored(record);
}

void Subscriptions::on_timer(Time now, WallMs wall) {
  for (auto& [key, topic] : topics_)
    if (topic.subscription->next_deadline() <= now)
      topic.subscription->on_timer(now, wall);
}

Time Subscriptions::next_deadline() const {
  Time next = news_.empty() ? kNever : 0;
  for (const auto& [key, topic] : topics_)
    next = std::min(next, topic.subscription->next_deadline());
  return next;
}

void Subscriptions::on_joined(Time now) {
  for (auto& [key, topic] : topics_)
    topic.subscription->look_again(now);
}

// A listener may add and remove listeners, itself too.
void Subscriptions::tell() {
  for (const Id& key : std::exchange(news_, {})) {
    const auto found = topics_.find(key);
    if (found == topics_.end())
      continue;
    const uint64_t generation = found->second.generation;
    const std::vector<ListenId> strangers = std::exchange(found->second.strangers, {});
    std::vector<std::pair<ListenId, ListenEvent>> messages;
    if (found->second.subscription->has_news()) {
      const ListenEvent news = found->second.subscription->take_news();
      for (const auto& [id, on_event] : found->second.listeners)
        if (std::find(strangers.begin(), strangers.end(), id) == strangers.end())
          messages.push_back({id, news});
    }
    for (const ListenId id : strangers)
      messages.push_back({id, found->second.subscription->everything()});
    for (const auto& [id, event] : messages) {
      Topic* topic = find(key, generation);
      if (topic == nullptr)
        break;
      if (const auto listener = topic->listeners.find(id); listener != topic->listeners.end()) {
        const OnEvent on_event = listener->second; // it may remove itself
        on_event(event);
      }
    }
  }
}

} // namespace lah::dht
