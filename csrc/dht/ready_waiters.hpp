#pragma once

#include <vector>

#include "dht/node.hpp"

namespace lah::dht {

// Those who wait for their node's way into the network.
class ReadyWaiters final : public NodeTask {
public:
  // Whether the node was let in before the deadline.
  using Done = std::function<void(Time now, WallMs wall, bool ready)>;

  explicit ReadyWaiters(Node& node) : node_(node) { node.add_task(*this); }
  ~ReadyWaiters() override { node_.remove_task(*this); }
  ReadyWaiters(const ReadyWaiters&) = delete;
  ReadyWaiters& operator=(const ReadyWaiters&) = delete;

  // `done` may run inside this call.
  void wait(Time now, WallMs wall, Time deadline, Done done);
  void on_timer(Time now, WallMs wall) override;
  void on_joined(Time now, WallMs wall) override { on_timer(now, wall); }
  Time next_deadline() const override;
  // Tells all that wait, for a node about to be destroyed.
  void abandon(Time now, WallMs wall);

private:
  struct Waiter {
    Time deadline;
    Done done;
  };
  Node& node_;
  Time next_look_ = kNever;
  std::vector<Waiter> waiters_;
};

} // namespace lah::dht
