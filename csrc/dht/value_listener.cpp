#include "dht/value_listener.hpp"

#include <algorithm>

namespace lah::dht {

ValueListener::ValueListener(Node& node, const Id& key, Changed changed)
    : node_(node), changed_(std::move(changed)),
      id_(node.start_listen(key, [this](const ListenEvent& event) { on_event(event); })) {
  node_.add_task(*this);
}

ValueListener::~ValueListener() {
  node_.remove_task(*this);
  if (id_)
    node_.stop_listen(*id_);
}

void ValueListener::on_event(const ListenEvent& event) {
  bool news = event.first;
  for (const Record& record : event.changed) {
    news = !record.is_tombstone() || values_.erase(record.owner) > 0 || news;
    if (!record.is_tombstone())
      values_.insert_or_assign(record.owner, record);
  }
  for (const Record& record : event.refreshed)
    if (!record.is_tombstone())
      values_.insert_or_assign(record.owner, record);
  schedule_expiry();
  if (news)
    tell();
}

void ValueListener::on_timer(Time, WallMs wall) {
  const size_t expired =
      std::erase_if(values_, [&](const auto& entry) { return entry.second.expiry_ms <= wall; });
  schedule_expiry();
  if (expired > 0)
    tell();
}

void ValueListener::schedule_expiry() {
  next_expiry_ = kNever;
  for (const auto& [owner, record] : values_) {
    const uint64_t left_ms = std::max(record.expiry_ms, node_.wall() + 1) - node_.wall();
    next_expiry_ =
        std::min(next_expiry_, node_.time() + static_cast<Duration>(left_ms) * kMillisecond);
  }
}

void ValueListener::tell() const {
  std::vector<Record> values;
  for (const auto& [owner, record] : values_)
    values.push_back(record);
  changed_(std::move(values));
}

} // namespace lah::dht
