// The one network thread of a process. It owns every socket and never takes Python's GIL.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "crypto/key_agreements.hpp"
#include "dht/record.hpp"
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

private:
  friend class NetThread;
  Time planned_ = kNever; // when the loop will look at next_deadline(); see NetThread::plan()
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

  // On the network thread only. A service that was added is asked for its deadline in every turn.
  void add(Service& service);
  void remove(Service& service);
  // For services of which there may be thousands: not added, they call this after everything that
  // may have brought their deadline forward.
  void plan(Service& service);
  void watch(int fd, Service& service);
  void unwatch(int fd);

  const Clock& clock() const { return clock_; }
  Rng& rng() { return rng_; }                                 // network thread only
  crypto::KeyAgreements& agreements() { return agreements_; } // network thread only
  dht::VerifiedRecords& verified() { return verified_; }      // network thread only
  // What the loop spent outside its wait.
  TurnTimes& turn_times() { return turn_times_; }

private:
  void loop();
  void run_commands();
  Time run_timers(Time now);
  void run_planned(Time now);

  std::unique_ptr<Poller> poller_;
  SystemClock clock_;
  SystemRng rng_;
  crypto::KeyAgreements agreements_;
  dht::VerifiedRecords verified_;

  std::mutex mutex_;
  std::vector<Command> commands_;
  std::atomic<bool> stopping_{false};
  TurnTimes turn_times_;

  std::vector<Service*> services_;
  std::set<std::pair<Time, Service*>> plan_; // at most one entry each
  std::vector<Service*> due_;                // of the plan, in this turn; null if removed in it
  std::unordered_map<int, Service*> watched_;
  std::thread thread_; // last: everything it touches is constructed before it starts
};

} // namespace lah::net
