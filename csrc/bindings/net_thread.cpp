#include "bindings/net_thread.hpp"

#include <pybind11/pybind11.h>

#include "bindings/core.hpp"

namespace py = pybind11;

namespace lah::bindings {

NetThreadHandle::NetThreadHandle() : owner_(getpid()) {
  auto thread = net::NetThread::start();
  if (!thread)
    throw std::runtime_error("cannot start the network thread: " + thread.error().message);
  thread_ = std::move(*thread);
}

NetThreadHandle::~NetThreadHandle() {
  if (forked()) {
    leak(std::move(zmq_));
    leak(std::move(thread_));
    return;
  }
  const GilRelease release;
  zmq_.reset();
  thread_.reset();
}

net::NetThread& NetThreadHandle::get() {
  check_not_forked(owner_);
  return *thread_;
}

net::ZmqContext& NetThreadHandle::zmq() {
  net::NetThread& thread = get();
  const GilRelease release; // several threads may come here for the first time
  const std::lock_guard lock(zmq_mutex_);
  if (!zmq_)
    zmq_ = std::make_unique<net::ZmqContext>(thread);
  return *zmq_;
}

void check_not_forked(pid_t owner) {
  if (getpid() != owner)
    throw std::runtime_error("this network object belongs to the parent process and cannot be used "
                             "after a fork; create a new "
                             "TesseractNetwork in the child (or use it only in the parent, e.g. "
                             "outside of DataLoader workers)");
}

void bind_net_thread(py::module_& m) {
  py::class_<NetThreadHandle>(m, "NetThread", "The one network thread of this process.")
      .def(py::init<>())
      .def(
          "take_turns",
          [](NetThreadHandle& self) {
            py::list turns;
            for (const auto& [longest, count] : self.get().turn_times().take())
              turns.append(py::make_tuple(static_cast<double>(longest) / 1e9, count));
            return turns;
          },
          "Since the last call: (seconds, how many turns of the loop took at most that long).");
}

} // namespace lah::bindings
