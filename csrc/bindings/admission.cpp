// Certificates of admission: issued by a run's owner, shown by its nodes.
#include <pybind11/stl.h>

#include "bindings/network_support.hpp"
#include "crypto/certificate.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

py::bytes issue(const py::bytes& owner_seed, const std::string& network_id, const py::bytes& node,
                uint64_t expiry_ms) {
  const Buffer encoded = crypto::encode_certificate(crypto::issue_certificate(
      identity_from(owner_seed), network_id, public_key_from(node), expiry_ms));
  return {reinterpret_cast<const char*>(encoded.data()), encoded.size()};
}

// When it expires, in ms since 1970; none if it is no certificate of this owner for this node.
std::optional<uint64_t> check(const py::bytes& owner, const std::string& network_id,
                              const py::bytes& node, const py::bytes& certificate) {
  const auto decoded = crypto::decode_certificate(as_bytes(std::string_view(certificate)));
  if (!decoded || !crypto::verify_certificate(public_key_from(owner), network_id,
                                              public_key_from(node), *decoded))
    return std::nullopt;
  return decoded->expiry_ms;
}

} // namespace

void bind_admission(py::module_& m) {
  m.def("issue_certificate", &issue, py::arg("owner_seed"), py::arg("network_id"), py::arg("node"),
        py::arg("expiry_ms"));
  m.def("check_certificate", &check, py::arg("owner"), py::arg("network_id"), py::arg("node"),
        py::arg("certificate"));
}

} // namespace lah::bindings
