// Network: a DHT node for TesseractNetwork. Waiting releases the GIL and comes up for air to let
// Ctrl-C through.
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/declarations.hpp"
#include "bindings/net_thread.hpp"
#include "bindings/watched_grids.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

// Operations end by their own deadlines; this covers a network thread that is late itself.
constexpr Duration kGrace = kSecond;

using Peers = std::vector<std::pair<std::string, int>>;

class Network {
public:
  Network(NetThreadHandle& thread, const std::optional<py::bytes>& seed, const std::string& host,
          int port, const Peers& initial_peers, const std::string& network_id, bool client_mode)
      : owner_(getpid()) {
    net::SystemRng rng;
    const crypto::Identity identity = seed ? identity_from(*seed) : crypto::Identity::generate(rng);
    dht::NodeConfig config{network_id, {}, client_mode};
    for (const auto& [ip, peer_port] : initial_peers)
      config.seeds.push_back(endpoint_from(ip, peer_port, "initial_peers"));
    if (config.seeds.size() > Limits::kSeeds)
      raise_error({ErrorCode::kInvalidArgument,
                   "initial_peers: at most " + std::to_string(Limits::kSeeds) + " are allowed"});
    public_key_ = identity.public_key();
    const Endpoint bind = endpoint_from(host, port, "port");
    net::NetThread& net = thread.get();
    Result<std::unique_ptr<net::UdpDriver>> opened = [&] {
      const GilRelease release;
      return net::UdpDriver::open(net, identity, bind, std::move(config));
    }();
    driver_ = value_or_raise(std::move(opened));
    port_ = driver_->port();
  }

  ~Network() {
    if (getpid() != owner_) {
      new std::shared_ptr<net::UdpDriver>(std::move(driver_)); // on purpose: see leak()
      return;
    }
    close();
  }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  void close() {
    check_not_forked(owner_);
    std::shared_ptr<net::UdpDriver> closing = std::exchange(driver_, nullptr);
    watched_.clear();
    if (closing == nullptr)
      return;
    const GilRelease release;
    // Callers that still wait in other threads get what there is, now.
    closing->run_and_wait([](auto& core, Time, WallMs) { core.node.abandon(); });
    closing.reset();
  }

  bool closed() const { return driver_ == nullptr; }
  uint16_t port() const { return port_; }
  py::bytes public_key() const { return to_bytes(public_key_); }

  bool wait_ready(double timeout) {
    const Time until = clock_.now() + seconds(timeout);
    while (true) {
      if (status_now().ready)
        return true;
      const Duration left = until - clock_.now();
      if (left <= 0)
        return false;
      Answer<bool> pause;
      pause.wait(std::min<Duration>(left, 10 * kMillisecond));
    }
  }

  // --- records -----------------------------------------------------------------------------------

  py::list get(const py::bytes& name, double timeout) {
    auto answer = std::make_shared<Answer<dht::GetResult>>();
    const Duration allowed = seconds(timeout);
    const dht::Id key = user_key(name);
    post([=](auto& core, Time now, WallMs wall) {
      core.node.start_get(now, wall, key, now + allowed,
                          [answer](dht::GetResult result) { answer->set(std::move(result)); });
    });
    dht::GetResult result = finish(*answer, allowed, "get");
    std::erase_if(result.records, [](const auto& record) { return record.is_tombstone(); });
    std::sort(result.records.begin(), result.records.end(),
              [](const auto& a, const auto& b) { return a.seq > b.seq; });
    py::list records;
    for (const dht::Record& record : result.records)
      records.append(py::make_tuple(
          to_bytes(record.owner),
          py::bytes(reinterpret_cast<const char*>(record.payload.data()), record.payload.size())));
    return records;
  }

  size_t store(const py::bytes& name, const py::bytes& value, double expiration, double timeout) {
    const std::string_view text = value;
    if (text.empty() || text.size() > Limits::kRecordPayloadBytes)
      raise_error({ErrorCode::kInvalidArgument, "value: expected 1 to " +
                                                    std::to_string(Limits::kRecordPayloadBytes) +
                                                    " bytes, got " + std::to_string(text.size())});
    if (!(expiration > 0) || expiration * 1e3 > double{Limits::kRecordLifetimeMs})
      raise_error({ErrorCode::kInvalidArgument,
                   "expiration: expected seconds above 0 and at most 600, got " +
                       std::to_string(expiration)});
    auto answer = std::make_shared<Answer<size_t>>();
    const Duration allowed = seconds(timeout);
    const auto lifetime_ms = static_cast<uint64_t>(expiration * 1e3);
    const dht::Id key = user_key(name);
    const ByteView bytes = as_bytes(text);
    post([this, answer, allowed, lifetime_ms, key,
          payload = Buffer(bytes.begin(), bytes.end())](auto& core, Time now, WallMs wall) {
      last_seq_ = std::max(last_seq_ + 1, wall);
      core.node.start_store(
          now, wall, core.node.sign(key, last_seq_, wall + lifetime_ms, payload), now + allowed,
          [answer](const dht::StoreResult& result) { answer->set(result.replicas + 1); });
    });
    return finish(*answer, allowed, "store");
  }

  // --- declarations ------------------------------------------------------------------------------

  size_t declare(const std::vector<std::string>& uids, const std::vector<uint64_t>& schema_hashes,
                 const std::vector<std::string>& addresses, int tcp_port, uint64_t boot_id,
                 double period, double expiry, double timeout) {
    auto answer = std::make_shared<Answer<Result<size_t>>>();
    const Duration allowed = seconds(timeout);
    post([served = served_from(uids, schema_hashes, addresses, tcp_port, boot_id, period, expiry),
          answer, allowed](auto& core, Time now, WallMs wall) {
      auto started = core.declarer.declare(now, wall, served, now + allowed,
                                           [answer](size_t replicas) { answer->set(replicas); });
      if (!started)
        answer->set(started.error());
    });
    return value_or_raise(finish(*answer, allowed, "declare"));
  }

  void undeclare(double timeout) {
    auto answer = std::make_shared<Answer<size_t>>();
    const Duration allowed = seconds(timeout);
    post([=](auto& core, Time now, WallMs wall) {
      core.declarer.undeclare(now, wall, now + allowed,
                              [answer](size_t replicas) { answer->set(replicas); });
    });
    finish(*answer, allowed, "undeclare");
  }

  // --- experts -----------------------------------------------------------------------------------

  py::list find_experts(const std::vector<std::string>& uids, double timeout) {
    using Found = std::vector<std::optional<dht::ExpertSearch::Found>>;
    auto answer = std::make_shared<Answer<Found>>();
    const Duration allowed = seconds(timeout);
    post([parsed = parse_uids(uids, "uids"), answer, allowed](auto& core, Time now, WallMs wall) {
      core.search.find(now, wall, parsed, now + allowed,
                       [answer](Found found) { answer->set(std::move(found)); });
    });
    py::list experts;
    for (const auto& found : finish(*answer, allowed, "find_experts"))
      if (found)
        experts.append(py::make_tuple(found->endpoint.ip_text(), found->endpoint.port,
                                      to_bytes(found->owner), found->boot_id));
      else
        experts.append(py::none());
    return experts;
  }

  std::vector<std::string> first_k_active(const std::vector<std::string>& prefixes, size_t k,
                                          double timeout) {
    auto answer = std::make_shared<Answer<std::vector<bool>>>();
    const Duration allowed = seconds(timeout);
    post([parsed = parse_uids(prefixes, "prefixes"), answer, allowed](auto& core, Time now,
                                                                      WallMs wall) {
      core.search.active(now, wall, parsed, now + allowed,
                         [answer](std::vector<bool> active) { answer->set(std::move(active)); });
    });
    const std::vector<bool> active = finish(*answer, allowed, "first_k_active");
    std::vector<std::string> first;
    for (size_t i = 0; i < prefixes.size() && first.size() < k; ++i)
      if (active[i])
        first.push_back(prefixes[i]);
    return first;
  }

  void watch(const std::string& prefix, const std::vector<int64_t>& grid, double period) {
    const Duration every = seconds(period);
    if (every < 10 * kMillisecond)
      raise_error({ErrorCode::kInvalidArgument, "period: expected at least 0.01 seconds"});
    watched_.watch(*driver(), prefix, grid, every);
  }

  py::tuple alive(const std::string& prefix, const std::vector<int64_t>& grid) {
    check_running();
    return watched_.alive(prefix, grid);
  }

  uint64_t alive_version(const std::string& prefix, const std::vector<int64_t>& grid) {
    check_running();
    const auto map = watched_.map(prefix, grid);
    return map == nullptr ? 0 : map->version;
  }

  size_t other_schemas(const std::string& prefix, const std::vector<int64_t>& grid) {
    check_running();
    const auto map = watched_.map(prefix, grid);
    return map == nullptr ? 0 : map->other_schemas;
  }

  bool wait_alive(const std::string& prefix, const std::vector<int64_t>& grid, uint64_t version,
                  double timeout) {
    check_running();
    const std::shared_ptr<WatchedGrid> watched = watched_.grid(prefix, grid);
    const Time until = clock_.now() + seconds(timeout);
    while (true) {
      {
        const GilRelease release;
        const Duration left = std::min(kSignalSlice, until - clock_.now());
        if (watched->wait_for_version(version, left))
          return true;
      }
      check_signals();
      if (clock_.now() >= until || closed())
        return false;
    }
  }

  void suspect(const py::bytes& key, std::optional<uint64_t> boot_id, double duration) {
    const Duration held = seconds(duration);
    run([peer = public_key_from(key), boot_id, held](auto& core, Time now, WallMs) {
      core.search.suspect(now, peer, boot_id, now + held);
    });
  }

  void forgive(const py::bytes& key) {
    run([peer = public_key_from(key)](auto& core, Time now, WallMs) {
      core.search.forgive(now, peer);
    });
  }

  // --- the node ----------------------------------------------------------------------------------

  std::optional<double> ping(const std::string& ip, int port, double timeout) {
    auto answer = std::make_shared<Answer<dht::PingResult>>();
    const Duration allowed = seconds(timeout);
    const Endpoint to = endpoint_from(ip, port, "port");
    post([=](auto& core, Time now, WallMs wall) {
      core.node.start_ping(now, wall, to, now + allowed,
                           [answer](const dht::PingResult& result) { answer->set(result); });
    });
    const auto result = answer->wait(allowed);
    if (!result || result->rtt < 0)
      return std::nullopt;
    return static_cast<double>(result->rtt) / 1e9;
  }

  py::dict status() {
    const dht::NodeStatus status = status_now();
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
    result["records"] = status.records;
    result["operations"] = status.operations;
    result["observed"] = status.observed ? py::cast(status.observed->ip_text()) : py::none();
    return result;
  }

private:
  void check_running() const {
    check_not_forked(owner_);
    if (closed())
      raise_error({ErrorCode::kShuttingDown, "this network was shut down"});
  }

  std::shared_ptr<net::UdpDriver> driver() {
    check_running();
    return driver_;
  }

  void post(net::UdpDriver::Command command) { driver()->post(std::move(command)); }

  void run(const net::UdpDriver::Command& command) {
    std::shared_ptr<net::UdpDriver> held = driver();
    const GilRelease release;
    held->run_and_wait(command);
    held.reset();
  }

  dht::NodeStatus status_now() {
    dht::NodeStatus status;
    run([&](auto& core, Time, WallMs) { status = core.node.status(); });
    return status;
  }

  template <class T> T finish(Answer<T>& answer, Duration allowed, const char* what) {
    std::optional<T> value = answer.wait(allowed + kGrace);
    if (closed())
      raise_error({ErrorCode::kShuttingDown, std::string(what) + ": the network was shut down"});
    if (!value)
      raise_error({ErrorCode::kDeadlineExceeded,
                   std::string(what) + ": no answer from the network thread"});
    return std::move(*value);
  }

  static dht::Id user_key(const py::bytes& name) {
    return dht::record_key("lah-user-1", as_bytes(std::string_view(name)));
  }

  pid_t owner_;
  net::SystemClock clock_;
  crypto::PublicKey public_key_{};
  uint16_t port_ = 0;
  // Shared with callers in other threads that are inside a method while close() runs.
  std::shared_ptr<net::UdpDriver> driver_;
  WatchedGrids watched_;
  uint64_t last_seq_ = 0; // network thread only
};

} // namespace

void bind_network(py::module_& m) {
  py::class_<Network>(m, "Network", "One DHT node on a UDP socket.")
      .def(py::init<NetThreadHandle&, const std::optional<py::bytes>&, const std::string&, int,
                    const Peers&, const std::string&, bool>(),
           py::keep_alive<1, 2>(), py::arg("net_thread"), py::arg("seed"), py::arg("host"),
           py::arg("port"), py::arg("initial_peers"), py::arg("network_id") = kNetworkId,
           py::arg("client_mode") = false)
      .def_property_readonly("port", &Network::port)
      .def_property_readonly("public_key", &Network::public_key)
      .def_property_readonly("closed", &Network::closed)
      .def("wait_ready", &Network::wait_ready, py::arg("timeout"))
      .def("get", &Network::get, py::arg("name"), py::arg("timeout"))
      .def("store", &Network::store, py::arg("name"), py::arg("value"), py::arg("expiration"),
           py::arg("timeout"))
      .def("declare", &Network::declare, py::arg("uids"), py::arg("schema_hashes"),
           py::arg("addresses"), py::arg("tcp_port"), py::arg("boot_id"), py::arg("period"),
           py::arg("expiry"), py::arg("timeout"))
      .def("undeclare", &Network::undeclare, py::arg("timeout"))
      .def("find_experts", &Network::find_experts, py::arg("uids"), py::arg("timeout"))
      .def("first_k_active", &Network::first_k_active, py::arg("prefixes"), py::arg("k"),
           py::arg("timeout"))
      .def("watch", &Network::watch, py::arg("prefix"), py::arg("grid"), py::arg("period") = 1.0)
      .def("alive", &Network::alive, py::arg("prefix"), py::arg("grid"))
      .def("alive_version", &Network::alive_version, py::arg("prefix"), py::arg("grid"))
      .def("other_schemas", &Network::other_schemas, py::arg("prefix"), py::arg("grid"))
      .def("wait_alive", &Network::wait_alive, py::arg("prefix"), py::arg("grid"),
           py::arg("version"), py::arg("timeout"))
      .def("suspect", &Network::suspect, py::arg("public_key"), py::arg("boot_id"),
           py::arg("seconds"))
      .def("forgive", &Network::forgive, py::arg("public_key"))
      .def("ping", &Network::ping, py::arg("ip"), py::arg("port"), py::arg("timeout"))
      .def("status", &Network::status)
      .def("close", &Network::close);
}

} // namespace lah::bindings
