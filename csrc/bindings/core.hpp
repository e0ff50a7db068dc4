#pragma once

#include <pybind11/pybind11.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "crypto/identity.hpp"
#include "rpc/message.hpp"

namespace lah::bindings {

void bind_net_thread(pybind11::module_& m);
void bind_answers(pybind11::module_& m);
void bind_listener(pybind11::module_& m);
void bind_network(pybind11::module_& m);
void bind_network_state(pybind11::module_& m);
void bind_hello(pybind11::module_& m);
void bind_calls(pybind11::module_& m);
void bind_batching(pybind11::module_& m);
void bind_codecs(pybind11::module_& m);
void bind_sim(pybind11::module_& m);
void bind_admission(pybind11::module_& m);

// Raises RuntimeError in a forked child: network threads do not survive a fork.
void check_not_forked(pid_t owner);

// Releases the GIL in its scope. pybind11's own guard ends the process by std::terminate when a
// daemon thread wants the GIL back while the interpreter exits: Python before 3.14 ends the thread
// there by unwinding it. This one stops the thread for good instead, as later Pythons do.
class GilRelease {
public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

private:
  PyThreadState* state_;
};

// What a forked child inherits must not be destroyed there: its locks may be held for ever.
template <class T> void leak(std::unique_ptr<T> object) {
  static_cast<void>(object.release());
}

// Raises the typed Python error of learning_at_home.errors for this code.
[[noreturn]] void raise_error(const Error& error);

// A tensor as Python passes it: address, dtype code, shape.
using TensorTuple = std::tuple<uintptr_t, int, std::vector<uint64_t>>;
rpc::TensorMeta meta_from(const TensorTuple& tensor);

Duration seconds(double value);
crypto::Identity identity_from(const pybind11::bytes& seed);
crypto::PublicKey public_key_from(const pybind11::bytes& key);

} // namespace lah::bindings
