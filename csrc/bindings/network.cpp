#include "bindings/network.hpp"

#include <pybind11/stl.h>

#include "net/local_addresses.hpp"

namespace py = pybind11;

namespace lah::bindings {

Network::Network(NetThreadHandle& thread, const std::optional<py::bytes>& seed,
                 const std::string& host, int port, const Peers& initial_peers,
                 const std::string& network_id, bool client_mode, bool large_table,
                 const std::optional<py::bytes>& state, const std::optional<py::bytes>& run_owner,
                 const py::bytes& certificate)
    : owner_(getpid()) {
  net::SystemRng rng;
  const crypto::Identity identity = seed ? identity_from(*seed) : crypto::Identity::generate(rng);
  dht::NodeConfig config{network_id, {}, client_mode};
  if (large_table)
    config.table_size = dht::TableSize::kLarge;
  if (run_owner)
    config.admission = {public_key_from(*run_owner), to_buffer(certificate)};
  for (const auto& [ip, peer_port] : initial_peers)
    config.seeds.push_back(endpoint_from(ip, peer_port, "initial_peers"));
  if (config.seeds.size() > Limits::kSeeds)
    raise_error({ErrorCode::kInvalidArgument,
                 "initial_peers: at most " + std::to_string(Limits::kSeeds) + " are allowed"});
  if (state)
    config.state = value_or_raise(dht::decode_state(as_bytes(std::string_view(*state))));
  public_key_ = identity.public_key();
  const Endpoint bind = endpoint_from(host, port, "port");
  config.local_addresses = net::local_addresses(bind.port);
  net::NetThread& net = thread.get();
  Result<std::unique_ptr<net::UdpDriver>> opened = [&] {
    const GilRelease release;
    return net::UdpDriver::open(net, identity, bind, std::move(config));
  }();
  driver_ = value_or_raise(std::move(opened));
  port_ = driver_->port();
}

Network::~Network() {
  if (getpid() != owner_) {
    new std::shared_ptr<net::UdpDriver>(std::move(driver_)); // on purpose: see leak()
    return;
  }
  close();
}

void Network::close() {
  check_not_forked(owner_);
  std::shared_ptr<net::UdpDriver> closing = std::exchange(driver_, nullptr);
  watched_.clear();
  if (closing == nullptr)
    return;
  const GilRelease release;
  calls_->closing.store(true); // from here on every answer says so
  closing->run_and_wait([](auto& core, Time now, WallMs wall) {
    core.ready.abandon(now, wall);
    core.node.abandon();
  });
  closing.reset();
}

void Network::check_running() const {
  check_not_forked(owner_);
  if (closed())
    raise_error({ErrorCode::kShuttingDown, "this network was shut down"});
}

std::shared_ptr<net::UdpDriver> Network::driver() {
  check_running();
  return driver_;
}

void Network::post(net::UdpDriver::Command command) {
  driver()->post(std::move(command));
}

void Network::run(const net::UdpDriver::Command& command) {
  std::shared_ptr<net::UdpDriver> held = driver();
  const GilRelease release;
  held->run_and_wait(command);
  held.reset();
}

std::shared_ptr<Answer> Network::wait_ready(double timeout) {
  const Duration allowed = seconds(timeout);
  auto answer = open<bool>("wait_ready", allowed, [](bool ready) { return py::bool_(ready); });
  post([=](auto& core, Time now, WallMs wall) {
    core.ready.wait(now, wall, now + allowed,
                    [answer](Time, WallMs, bool ready) { answer->set(ready); });
  });
  return answer;
}

std::shared_ptr<Answer> Network::ping(const std::string& ip, int port, double timeout) {
  const Duration allowed = seconds(timeout);
  const Endpoint to = endpoint_from(ip, port, "port");
  auto answer = open<Duration>("ping", allowed, [](Duration rtt) -> py::object {
    if (rtt < 0)
      return py::none();
    return py::float_(static_cast<double>(rtt) / 1e9);
  });
  post([=](auto& core, Time now, WallMs wall) {
    core.node.start_ping(now, wall, to, now + allowed,
                         [answer](const dht::PingResult& result) { answer->set(result.rtt); });
  });
  return answer;
}

void Network::renew_certificate(const py::bytes& certificate) {
  run([renewed = to_buffer(certificate)](auto& core, Time, WallMs) {
    core.node.renew_certificate(renewed);
  });
}

py::dict Network::status() {
  dht::NodeStatus status;
  run([&](auto& core, Time, WallMs) { status = core.node.status(); });
  py::dict result;
  result["peers"] = status.peers;
  result["ready"] = status.ready;
  result["isolated"] = status.isolated;
  result["packets_in"] = status.packets_in;
  result["packets_out"] = status.packets_out;
  result["bytes_in"] = status.bytes_in;
  result["bytes_out"] = status.bytes_out;
  result["bad_packets"] = status.bad_packets;
  result["requests_answered"] = status.requests_answered;
  result["requests_failed"] = status.requests_failed;
  result["newcomers_refused"] = status.newcomers_refused;
  result["not_admitted"] = status.not_admitted;
  result["refusals"] = status.refusals;
  result["records"] = status.records;
  result["operations"] = status.operations;
  result["open_calls"] = calls_->count.load();
  result["observed"] = status.observed ? py::cast(status.observed->ip_text()) : py::none();
  result["clock_offset_ms"] = status.clock_offset_ms;
  constexpr std::array<const char*, 3> kReachability{"unknown", "public", "unreachable"};
  result["reachability"] = kReachability[static_cast<size_t>(status.reachability)];
  result["behind_nat"] = status.behind_nat ? py::cast(*status.behind_nat) : py::none();
  return result;
}

void bind_network(py::module_& m) {
  py::dict limits;
  limits["kRecordPayloadBytes"] = Limits::kRecordPayloadBytes;
  limits["kNamesPerCall"] = Limits::kNamesPerCall;
  limits["kOpenCalls"] = Limits::kOpenCalls;
  limits["kSubscriptions"] = Limits::kSubscriptions;
  m.attr("LIMITS") = limits;
  py::class_<Network>(m, "Network", "One DHT node on a UDP socket.")
      .def(py::init<NetThreadHandle&, const std::optional<py::bytes>&, const std::string&, int,
                    const Peers&, const std::string&, bool, bool, const std::optional<py::bytes>&,
                    const std::optional<py::bytes>&, const py::bytes&>(),
           py::keep_alive<1, 2>(), py::arg("net_thread"), py::arg("seed"), py::arg("host"),
           py::arg("port"), py::arg("initial_peers"), py::arg("network_id") = kNetworkId,
           py::arg("client_mode") = false, py::arg("large_table") = false,
           py::arg("state") = py::none(), py::arg("run_owner") = py::none(),
           py::arg("certificate") = py::bytes())
      .def_property_readonly("port", &Network::port)
      .def_property_readonly("public_key", &Network::public_key)
      .def_property_readonly("closed", &Network::closed)
      .def("wait_ready", &Network::wait_ready, py::arg("timeout"))
      .def("get", &Network::get, py::arg("name"), py::arg("consistency"), py::arg("max_age"),
           py::arg("timeout"))
      .def("get_many", &Network::get_many, py::arg("names"), py::arg("consistency"),
           py::arg("max_age"), py::arg("timeout"))
      .def("store", &Network::store, py::arg("name"), py::arg("value"), py::arg("expiration"),
           py::arg("timeout"))
      .def("store_many", &Network::store_many, py::arg("values"), py::arg("expiration"),
           py::arg("timeout"))
      .def("listen", &Network::listen, py::arg("name"), py::arg("listener"))
      .def("stop_listening", &Network::stop_listening, py::arg("listener"))
      .def("declare", &Network::declare, py::arg("uids"), py::arg("schema_hashes"),
           py::arg("addresses"), py::arg("tcp_port"), py::arg("boot_id"), py::arg("period"),
           py::arg("expiry"), py::arg("grid_cells"), py::arg("join_timeout"), py::arg("timeout"))
      .def("undeclare", &Network::undeclare, py::arg("timeout"))
      .def("find_experts", &Network::find_experts, py::arg("uids"), py::arg("timeout"))
      .def("first_k_active", &Network::first_k_active, py::arg("prefixes"), py::arg("k"),
           py::arg("timeout"))
      .def("watch", &Network::watch, py::arg("prefix"), py::arg("grid"))
      .def("alive", &Network::alive, py::arg("prefix"), py::arg("grid"))
      .def("alive_version", &Network::alive_version, py::arg("prefix"), py::arg("grid"))
      .def("other_schemas", &Network::other_schemas, py::arg("prefix"), py::arg("grid"))
      .def("wait_alive", &Network::wait_alive, py::arg("prefix"), py::arg("grid"),
           py::arg("version"), py::arg("timeout"))
      .def("suspect", &Network::suspect, py::arg("public_key"), py::arg("boot_id"),
           py::arg("seconds"))
      .def("forgive", &Network::forgive, py::arg("public_key"))
      .def("find_best_experts", &Network::find_best_experts, py::arg("prefix"), py::arg("grid"),
           py::arg("scores"), py::arg("rows"), py::arg("k"), py::arg("beam"), py::arg("timeout"))
      .def("ping", &Network::ping, py::arg("ip"), py::arg("port"), py::arg("timeout"))
      .def("status", &Network::status)
      .def("save_state", &Network::save_state, py::arg("seed"))
      .def("renew_certificate", &Network::renew_certificate, py::arg("certificate"))
      .def("close", &Network::close);
}

} // namespace lah::bindings
