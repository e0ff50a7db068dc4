// The state of a network node as bytes, for learning_at_home/_state_file.py.
#include <pybind11/stl.h>

#include "bindings/network.hpp"
#include "dht/node_state.hpp"

namespace py = pybind11;

namespace lah::bindings {

py::bytes Network::save_state(const std::optional<py::bytes>& seed) {
  dht::NodeState state;
  run([&](auto& core, Time, WallMs) { state = core.node.save_state(); });
  if (seed) {
    const std::string_view text = *seed;
    if (text.size() != 32)
      raise_error({ErrorCode::kInvalidArgument, "seed: expected 32 bytes"});
    std::memcpy(state.identity_seed.emplace().data(), text.data(), text.size());
  }
  const Buffer file = dht::encode_state(state);
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

// (network id, seed of the key or None); InvalidArgument says what is wrong with the bytes.
void bind_network_state(py::module_& m) {
  m.def(
      "read_state",
      [](const py::bytes& file) {
        const dht::NodeState state =
            value_or_raise(dht::decode_state(as_bytes(std::string_view(file))));
        py::object seed = py::none();
        if (state.identity_seed)
          seed = to_bytes(*state.identity_seed);
        return py::make_tuple(state.network_id, seed);
      },
      py::arg("file"));
}

} // namespace lah::bindings
