#include "net/net_thread.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <condition_variable>

namespace lah::net {

Result<std::unique_ptr<NetThread>> NetThread::start() {
  auto poller = make_poller();
  if (!poller)
    return poller.error();
  return std::make_unique<NetThread>(std::move(*poller));
}

NetThread::NetThread(std::unique_ptr<Poller> poller) : poller_(std::move(poller)) {
  // Signals belong to Python's main thread: block them all while the new thread inherits its mask.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { loop(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

NetThread::~NetThread() {
  stopping_.store(true);
  poller_->wake();
  thread_.join();
}

void NetThread::post(Command command) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = commands_.empty();
    commands_.push_back(std::move(command));
  }
  if (first) // a non-empty queue has a wake-up on its way
    poller_->wake();
}

void NetThread::run_and_wait(const Command& command) {
  std::mutex mutex;
  std::condition_variable finished;
  bool done = false;
  post([&] {
    command();
    const std::lock_guard lock(mutex); // notify under the lock: the waiter owns `finished`
    done = true;
    finished.notify_one();
  });
  std::unique_lock lock(mutex);
  finished.wait(lock, [&] { return done; });
}

void NetThread::add(Service& service) {
  services_.push_back(&service);
}

void NetThread::remove(Service& service) {
  std::erase(services_, &service);
  plan_.erase({service.planned_, &service});
  std::replace(due_.begin(), due_.end(), &service, static_cast<Service*>(nullptr));
  std::erase_if(watched_, [&](const auto& entry) {
    if (entry.second == &service)
      poller_->unwatch(entry.first);
    return entry.second == &service;
  });
}

void NetThread::plan(Service& service) {
  const Time next = service.next_deadline();
  if (next >= service.planned_)
    return; // it is looked at before, and planned anew then
  plan_.erase({service.planned_, &service});
  service.planned_ = next;
  plan_.insert({next, &service});
}

void NetThread::watch(int fd, Service& service) {
  watched_[fd] = &service;
  poller_->watch(fd);
}

void NetThread::unwatch(int fd) {
  watched_.erase(fd);
  poller_->unwatch(fd);
}

void NetThread::run_commands() {
  std::vector<Command> batch;
  {
    const std::lock_guard lock(mutex_);
    batch.swap(commands_);
  }
  for (Command& command : batch)
    command();
}

void NetThread::run_planned(Time now) {
  while (!plan_.empty() && plan_.begin()->first <= now) {
    Service* service = plan_.begin()->second;
    plan_.erase(plan_.begin());
    service->planned_ = kNever;
    due_.push_back(service);
  }
  for (size_t i = 0; i < due_.size(); ++i) { // a timer may remove services
    if (due_[i] != nullptr && due_[i]->next_deadline() <= now)
      due_[i]->on_timer(now);
    if (due_[i] != nullptr)
      plan(*due_[i]);
  }
  due_.clear();
}

Time NetThread::run_timers(Time now) {
  run_planned(now);
  Time next = plan_.empty() ? kNever : plan_.begin()->first;
  for (size_t i = 0; i < services_.size(); ++i) { // a timer may remove services
    if (services_[i]->next_deadline() <= now)
      services_[i]->on_timer(now);
    if (i < services_.size())
      next = std::min(next, services_[i]->next_deadline());
  }
  return next;
}

void NetThread::loop() {
#ifdef __linux__
  pthread_setname_np(pthread_self(), "lah-net");
#endif
  std::vector<int> ready;
  Time woke = clock_.now();
  while (!stopping_.load()) {
    run_commands();
    const Time now = clock_.now();
    const Time next = run_timers(now);
    const Duration turn = clock_.now() - woke;
    turn_times_.add(turn);
    ready.clear();
    poller_->wait(next == kNever ? kNever : std::max<Duration>(next - clock_.now(), 0), ready);
    woke = clock_.now();
    for (int fd : ready)
      if (const auto found = watched_.find(fd); found != watched_.end())
        found->second->on_ready(fd, woke);
  }
  run_commands();
}

} // namespace lah::net
