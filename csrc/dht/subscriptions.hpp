#pragma once

#include <memory>

#include "dht/subscription.hpp"

namespace lah::dht {

using ListenId = uint64_t;

// All keys one node listens to. Several listeners of one key share its subscription.
class Subscriptions {
public:
  using OnEvent = std::function<void(const ListenEvent&)>;
  explicit Subscriptions(Node& node) : node_(node) {}

  // `on_event` is called by tell(), never in here. None if there are Limits::kSubscriptions keys.
  std::optional<ListenId> add(const Id& key, OnEvent on_event);
  void remove(ListenId id);
  void clear();

  NotifyReply on_notify(const Contact& from, const NotifyRequest& notify);
  void on_stored(const Record& record);
  void on_timer(Time now, WallMs wall);
  Time next_deadline() const;
  void on_joined(Time now);
  void tell(); // what is new

private:
  struct Topic {
    uint64_t generation; // so that answers to an earlier one are not taken for its own
    std::unique_ptr<Subscription> subscription;
    std::map<ListenId, OnEvent> listeners;
    std::vector<ListenId> strangers = {}; // who have been told nothing yet
  };
  Topic* find(const Id& key, uint64_t generation);

  Node& node_;
  std::map<Id, Topic> topics_;
  std::map<ListenId, Id> keys_;
  std::set<Id> news_; // keys that may have some
  uint64_t last_generation_ = 0;
  ListenId last_id_ = 0;
};

} // namespace lah::dht
