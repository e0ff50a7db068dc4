#include "dht/ready_waiters.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
// A node may also become ready without joining: when its only seed turns out to be itself.
constexpr Duration kLook = 20 * kMillisecond;
} // namespace

void ReadyWaiters::wait(Time now, WallMs wall, Time deadline, Done done) {
  if (node_.ready())
    return done(now, wall, true);
  waiters_.push_back({deadline, std::move(done)});
  next_look_ = now + kLook;
}

void ReadyWaiters::on_timer(Time now, WallMs wall) {
  next_look_ = now + kLook;
  const bool ready = node_.ready();
  std::vector<Waiter> told; // what they do next may be to wait again
  for (Waiter& waiter : std::exchange(waiters_, {}))
    (ready || waiter.deadline <= now ? told : waiters_).push_back(std::move(waiter));
  for (const Waiter& waiter : told)
    waiter.done(now, wall, ready);
}

Time ReadyWaiters::next_deadline() const {
  Time next = waiters_.empty() ? kNever : next_look_;
  for (const Waiter& waiter : waiters_)
    next = std::min(next, waiter.deadline);
  return next;
}

void ReadyWaiters::abandon(Time now, WallMs wall) {
  for (const Waiter& waiter : std::exchange(waiters_, {}))
    waiter.done(now, wall, false);
}

} // namespace lah::dht
