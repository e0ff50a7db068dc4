// Waits for file descriptors, a deadline, or a wake-up from another thread.
#pragma once

#include <memory>
#include <vector>

#include "base/result.hpp"
#include "base/time.hpp"

namespace lah::net {

class Poller {
public:
  virtual ~Poller() = default;
  virtual void watch(int fd) = 0; // readability, level-triggered
  virtual void unwatch(int fd) = 0;
  // Appends the readable descriptors to `ready`. Returns at once if `timeout` <= 0; kNever waits
  // for an event.
  virtual void wait(Duration timeout, std::vector<int>& ready) = 0;
  virtual void wake() = 0; // from any thread
};

// epoll and eventfd where the system has them, poll and a pipe elsewhere. An error names the
// failing call.
Result<std::unique_ptr<Poller>> make_poller();
Result<std::unique_ptr<Poller>> make_portable_poller();

} // namespace lah::net
