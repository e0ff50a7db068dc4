// HELLO from Python: servers answer it, clients ask it of peers known by address only.
#include "bindings/net_thread.hpp"
#include "bindings/network_support.hpp"
#include "net/hello_responder.hpp"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace lah::bindings {
namespace {

class HelloResponder {
public:
  HelloResponder(NetThreadHandle& thread, const py::bytes& seed, const std::string& host, int port,
                 const std::string& network_id)
      : owner_(getpid()) {
    const crypto::Identity identity = identity_from(seed);
    const Endpoint bind = endpoint_from(host, port, "port");
    net::NetThread& net = thread.get();
    auto opened = [&] {
      const GilRelease release;
      return net::HelloResponder::open(net, identity, bind, network_id);
    }();
    responder_ = value_or_raise(std::move(opened));
    port_ = responder_->port();
  }
  ~HelloResponder() {
    if (getpid() != owner_)
      leak(std::move(responder_));
    else
      close();
  }
  HelloResponder(const HelloResponder&) = delete;
  HelloResponder& operator=(const HelloResponder&) = delete;

  uint16_t port() const { return port_; }
  void close() {
    check_not_forked(owner_);
    std::unique_ptr<net::HelloResponder> closing = std::move(responder_);
    const GilRelease release;
    closing.reset();
  }

private:
  pid_t owner_;
  uint16_t port_ = 0;
  std::unique_ptr<net::HelloResponder> responder_;
};

std::optional<py::bytes> hello(NetThreadHandle& thread, const std::string& ip, int port,
                               double timeout, const std::string& network_id) {
  const Endpoint peer = endpoint_from(ip, port, "port");
  const net::SystemClock clock;
  const Time until = clock.now() + seconds(timeout);
  net::NetThread& net = thread.get();
  std::unique_ptr<net::HelloQuery> query = value_or_raise([&] {
    const GilRelease release;
    return net::HelloQuery::open(net, peer, network_id);
  }());
  bool done = false;
  while (!done && clock.now() < until) {
    {
      const GilRelease release;
      done = query->wait(std::min(kSignalSlice, until - clock.now()));
    }
    check_signals();
  }
  const std::optional<crypto::PublicKey> key = done ? query->key() : std::nullopt;
  {
    const GilRelease release;
    query.reset();
  }
  return key ? std::optional(to_bytes(*key)) : std::nullopt;
}

} // namespace

void bind_hello(py::module_& m) {
  py::class_<HelloResponder>(m, "HelloResponder", "Answers HELLO on a server's UDP port.")
      .def(py::init<NetThreadHandle&, const py::bytes&, const std::string&, int,
                    const std::string&>(),
           py::keep_alive<1, 2>(), py::arg("net_thread"), py::arg("seed"), py::arg("host"),
           py::arg("port"), py::arg("network_id") = kNetworkId)
      .def_property_readonly("port", &HelloResponder::port)
      .def("close", &HelloResponder::close);

  m.def("hello", &hello, py::arg("net_thread"), py::arg("ip"), py::arg("port"), py::arg("timeout"),
        py::arg("network_id") = kNetworkId,
        "The public key of whoever listens there, or None if nobody answered in time.");
  m.def(
      "public_key",
      [](const py::bytes& seed) { return to_bytes(identity_from(seed).public_key()); },
      py::arg("seed"), "The Ed25519 public key of a 32-byte seed.");
}

} // namespace lah::bindings
