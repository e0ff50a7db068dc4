// What the network thread answers a call of Python's with, perhaps after the caller stopped
// waiting. An answer holds nothing of Python's: the network thread may be the last to let go of it.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <variant>

#include "bindings/network_support.hpp"

namespace lah::bindings {

// Tickets of answers that are there, for the one thread that hands them on (_dispatcher.py).
class AnswerQueue {
public:
  AnswerQueue() : owner_(getpid()), state_(std::make_unique<State>()) {}
  ~AnswerQueue() {
    if (getpid() != owner_)
      leak(std::move(state_));
  }
  AnswerQueue(const AnswerQueue&) = delete;
  AnswerQueue& operator=(const AnswerQueue&) = delete;

  // From any thread, with the GIL or without.
  void push(uint64_t ticket);
  void close();
  // Those pushed since, none if the time ran out; nothing once closed and empty. With the GIL.
  std::optional<std::vector<uint64_t>> wait(double timeout);

private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<uint64_t> tickets;
    bool closed = false;
  };
  pid_t owner_;
  std::unique_ptr<State> state_;
};

// What the open calls of one network share.
struct OpenCalls {
  std::atomic<size_t> count{0};
  std::atomic<bool> closing{false};
};

class Answer {
public:
  // `calls` is told when the answer is there; `what` names the call in errors.
  Answer(std::shared_ptr<OpenCalls> calls, const char* what, Duration allowed);
  virtual ~Answer();
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  // With the GIL: the call's result, or raises what it ended with. Once; wait() waits for it.
  pybind11::object wait();
  pybind11::object value();
  // The queue gets `ticket` as soon as the answer is there.
  void forward(std::shared_ptr<AnswerQueue> queue, uint64_t ticket);
  // The network thread itself is late: operations end by their own deadlines.
  bool late() const { return clock_.now() > until_; }

protected:
  // `give` stores the result, and runs only for the first answer.
  void answered(const std::function<void()>& give);
  virtual pybind11::object convert() = 0;

private:
  bool wait_a_slice();

  const std::shared_ptr<OpenCalls> calls_;
  const char* const what_;
  const net::SystemClock clock_;
  const Time until_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool answered_ = false;
  bool shut_down_ = false; // the network, before the answer came
  std::shared_ptr<AnswerQueue> queue_;
  uint64_t ticket_ = 0;
};

template <class T> class AnswerOf final : public Answer {
public:
  using Convert = std::function<pybind11::object(T&&)>; // captures nothing of Python's
  AnswerOf(std::shared_ptr<OpenCalls> calls, const char* what, Duration allowed, Convert convert)
      : Answer(std::move(calls), what, allowed), convert_(std::move(convert)) {}

  // On the network thread. Later ones are ignored.
  void set(T value) {
    answered([&] { value_ = std::move(value); });
  }
  void fail(Error error) {
    answered([&] { value_ = std::move(error); });
  }

private:
  pybind11::object convert() override {
    if (const Error* error = std::get_if<Error>(&value_))
      raise_error(*error);
    return convert_(std::move(std::get<T>(value_)));
  }

  Convert convert_;
  std::variant<Error, T> value_;
};

} // namespace lah::bindings
