// The one network thread of a process. It owns every socket and never takes Python's GIL.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "net/poller.hpp"
#include "net/system.hpp"
#include "net/turn_times.hpp"

namespace lah::net {

// Something that lives on the network thread: a UDP node, an RPC client, an RPC server.
class Service {
public:
  virtual ~Service() = default;
  virtual void on_ready(int fd, Time now) = 0;
  virtual void on_timer(Time now) = 0; // called when next_deadline() has passed
  virtual Time next_deadline() const = 0;
};

class NetThread {
public:
  using Command = std::function<void()>;

  static Result<std::unique_ptr<NetThread>> start();
  explicit NetThread(std::unique_ptr<Poller> poller);
  ~NetThread(); // stops and joins; every service must have been removed
  NetThread(const NetThread&) = delete;
  NetThread& operator=(const NetThread&) = delete;

  // From any thread. `command` runs on the network thread, in posting order, and must not throw.
  void post(Command command);
  // The same, and returns only when it has run. Never call it on the network thread itself.
  void run_and_wait(const Command& command);

  // On the network thread only.
  void add(Service& service);
  void remove(Service& service);
  void watch(int fd, Service& service);
  void unwatch(int fd);

  const Clock& clock() const { return clock_; }
  Rng& rng() { return rng_; } // network thread only
  // What the loop spent outside its wait.
  TurnTimes& turn_times() { return turn_times_; }

private:
  void loop();
  void run_commands();
  Time run_timers(Time now);

  std::unique_ptr<Poller> poller_;
  SystemClock clock_;
  SystemRng rng_;

  std::mutex mutex_;
  std::vector<Command> commands_;
  std::atomic<bool> stopping_{false};
  TurnTimes turn_times_;

  std::vector<Service*> services_;
  std::unordered_map<int, Service*> watched_;
  std::thread thread_; // last: everything it touches is constructed before it starts
};

} // namespace lah::net
