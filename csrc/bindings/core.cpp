// _core: the Python face of the DHT, expert calls and batching. It knows nothing of torch: tensors
// cross as addresses.
#include "bindings/core.hpp"

#include <unistd.h>

#include <cmath>
#include <stdexcept>

#include "base/limits.hpp"

namespace py = pybind11;

namespace lah::bindings {

GilRelease::~GilRelease() {
  try {
    PyEval_RestoreThread(state_);
  } catch (...) { // the unwinding of pthread_exit, which must not reach the frames above
    while (true)
      pause();
  }
}

void raise_error(const Error& error) {
  const py::object errors = py::module_::import("learning_at_home.errors");
  const py::object made = errors.attr("make_error")(static_cast<int>(error.code), error.message,
                                                    error.detail, error.retry_after_ms);
  PyErr_SetObject(py::type::of(made).ptr(), made.ptr());
  throw py::error_already_set();
}

rpc::TensorMeta meta_from(const TensorTuple& tensor) {
  rpc::TensorMeta meta;
  meta.dtype = static_cast<DType>(std::get<1>(tensor));
  meta.shape = std::get<2>(tensor);
  const auto bytes = rpc::tensor_bytes(meta.dtype, meta.shape);
  if (!bytes)
    raise_error({ErrorCode::kInvalidArgument,
                 "one call carries at most " + std::to_string(Limits::kCallBytes) + " bytes"});
  meta.wire_bytes = *bytes;
  return meta;
}

Duration seconds(double value) {
  if (!std::isfinite(value) || value < 0 || value * 1e3 > static_cast<double>(Limits::kDeadlineMs))
    throw py::value_error("a time must be between 0 and 3600 seconds, got " +
                          std::to_string(value));
  return static_cast<Duration>(value * 1e9);
}

crypto::Identity identity_from(const py::bytes& seed) {
  const std::string_view text = seed;
  std::array<uint8_t, 32> bytes{};
  if (text.size() != bytes.size())
    throw py::value_error("an identity is a seed of 32 bytes, got " + std::to_string(text.size()));
  std::memcpy(bytes.data(), text.data(), bytes.size());
  return crypto::Identity::from_seed(bytes);
}

crypto::PublicKey public_key_from(const py::bytes& key) {
  const std::string_view text = key;
  crypto::PublicKey bytes{};
  if (text.size() != bytes.size())
    throw py::value_error("a public key has 32 bytes, got " + std::to_string(text.size()));
  std::memcpy(bytes.data(), text.data(), bytes.size());
  return bytes;
}

} // namespace lah::bindings

PYBIND11_MODULE(_core, m) {
  m.doc() = "Kademlia DHT, expert calls and batching. Use learning_at_home instead of this module.";
  lah::bindings::bind_net_thread(m);
  lah::bindings::bind_answers(m);
  lah::bindings::bind_listener(m);
  lah::bindings::bind_network(m);
  lah::bindings::bind_network_state(m);
  lah::bindings::bind_hello(m);
  lah::bindings::bind_calls(m);
  lah::bindings::bind_batching(m);
  lah::bindings::bind_codecs(m);
  lah::bindings::bind_sim(m);
  lah::bindings::bind_admission(m);
}
