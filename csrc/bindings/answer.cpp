#include "bindings/answer.hpp"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace lah::bindings {
namespace {
// Operations end by their own deadlines; this covers a network thread that is late itself.
constexpr Duration kGrace = kSecond;
} // namespace

void AnswerQueue::push(uint64_t ticket) {
  const std::lock_guard lock(state_->mutex);
  if (state_->closed)
    return;
  state_->tickets.push_back(ticket);
  state_->changed.notify_one();
}

void AnswerQueue::close() {
  if (getpid() != owner_)
    return;
  const std::lock_guard lock(state_->mutex);
  state_->closed = true;
  state_->changed.notify_one();
}

std::optional<std::vector<uint64_t>> AnswerQueue::wait(double timeout) {
  check_not_forked(owner_);
  const std::chrono::nanoseconds allowed(seconds(timeout));
  const GilRelease release;
  std::unique_lock lock(state_->mutex);
  state_->changed.wait_for(lock, allowed,
                           [this] { return state_->closed || !state_->tickets.empty(); });
  if (state_->closed && state_->tickets.empty())
    return std::nullopt;
  return std::exchange(state_->tickets, {});
}

Answer::Answer(std::shared_ptr<OpenCalls> calls, const char* what, Duration allowed)
    : calls_(std::move(calls)), what_(what), until_(clock_.now() + allowed + kGrace) {
  ++calls_->count;
}

Answer::~Answer() {
  if (!answered_)
    --calls_->count;
}

void Answer::answered(const std::function<void()>& give) {
  std::shared_ptr<AnswerQueue> queue;
  {
    const std::lock_guard lock(mutex_);
    if (answered_)
      return;
    give();
    answered_ = true;
    shut_down_ = calls_->closing.load();
    queue = std::move(queue_);
    changed_.notify_all();
  }
  --calls_->count;
  if (queue != nullptr)
    queue->push(ticket_);
}

void Answer::forward(std::shared_ptr<AnswerQueue> queue, uint64_t ticket) {
  {
    const std::lock_guard lock(mutex_);
    if (!answered_) {
      queue_ = std::move(queue);
      ticket_ = ticket;
      return;
    }
  }
  queue->push(ticket);
}

bool Answer::wait_a_slice() {
  const GilRelease release;
  std::unique_lock lock(mutex_);
  const Duration left = std::min(kSignalSlice, until_ - clock_.now());
  return changed_.wait_for(lock, std::chrono::nanoseconds(left), [this] { return answered_; });
}

py::object Answer::wait() {
  while (!wait_a_slice()) {
    check_signals();
    if (late())
      break;
  }
  return value();
}

py::object Answer::value() {
  const auto [answered, shut_down] = [this] {
    const std::lock_guard lock(mutex_);
    return std::pair(answered_, shut_down_);
  }();
  if (!answered)
    raise_error(
        {ErrorCode::kDeadlineExceeded, std::string(what_) + ": no answer from the network thread"});
  if (shut_down)
    raise_error({ErrorCode::kShuttingDown, std::string(what_) + ": the network was shut down"});
  return convert();
}

void bind_answers(py::module_& m) {
  py::class_<AnswerQueue, std::shared_ptr<AnswerQueue>>(m, "AnswerQueue",
                                                        "Tickets of answers that are there.")
      .def(py::init<>())
      .def("close", &AnswerQueue::close)
      .def("wait", &AnswerQueue::wait, py::arg("timeout"));
  py::class_<Answer, std::shared_ptr<Answer>>(m, "Answer", "What a call of a Network comes to.")
      .def("wait", &Answer::wait)
      .def("value", &Answer::value)
      .def("forward", &Answer::forward, py::arg("queue"), py::arg("ticket"))
      .def_property_readonly("late", &Answer::late);
}

} // namespace lah::bindings
