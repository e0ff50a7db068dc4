#pragma once

#include <unistd.h>

#include <memory>
#include <mutex>
#include <stdexcept>

#include "net/net_thread.hpp"
#include "net/zmq_context.hpp"

namespace lah::bindings {

// Python's `_core.NetThread`. In a forked child the thread does not exist: everything is leaked on
// purpose (its locks may be held for ever) and using it raises.
class NetThreadHandle {
public:
  NetThreadHandle();
  ~NetThreadHandle();
  NetThreadHandle(const NetThreadHandle&) = delete;
  NetThreadHandle& operator=(const NetThreadHandle&) = delete;

  net::NetThread& get();
  net::ZmqContext& zmq();
  bool forked() const { return getpid() != owner_; }

private:
  pid_t owner_;
  std::unique_ptr<net::NetThread> thread_;
  std::mutex zmq_mutex_;                 // taken without the GIL
  std::unique_ptr<net::ZmqContext> zmq_; // created on first use
};

} // namespace lah::bindings
