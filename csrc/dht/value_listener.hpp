#pragma once

#include "dht/node.hpp"

namespace lah::dht {

// The live values under a key, one for each owner, told whenever one comes, changes or goes: also
// by expiring, of which nobody else tells.
class ValueListener final : public NodeTask {
public:
  // The first call tells what the key held at the beginning, perhaps nothing.
  using Changed = std::function<void(std::vector<Record> values)>;

  ValueListener(Node& node, const Id& key, Changed changed);
  ~ValueListener() override;
  ValueListener(const ValueListener&) = delete;
  ValueListener& operator=(const ValueListener&) = delete;

  // False: the node listens to as many keys as it may.
  bool listens() const { return id_.has_value(); }
  void on_timer(Time now, WallMs wall) override;
  Time next_deadline() const override { return next_expiry_; }

private:
  void on_event(const ListenEvent& event);
  void schedule_expiry();
  void tell() const;

  Node& node_;
  Changed changed_;
  std::optional<ListenId> id_;
  std::map<PublicKey, Record> values_;
  Time next_expiry_ = kNever;
};

} // namespace lah::dht
