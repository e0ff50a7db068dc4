// Network: a DHT node for TesseractNetwork; HELLO for servers and for peers known by address only.
// Waiting releases the GIL and comes up for air to let Ctrl-C through.
#include <pybind11/stl.h>

#include <condition_variable>
#include <mutex>

#include "bindings/core.hpp"
#include "bindings/net_thread.hpp"
#include "net/hello_responder.hpp"
#include "net/udp_driver.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

constexpr Duration kSignalSlice = 50 * kMillisecond;
// Operations end by their own deadlines; this covers a network thread that is late itself.
constexpr Duration kGrace = kSecond;

py::bytes to_bytes(const std::array<uint8_t, 32>& key) {
  return {reinterpret_cast<const char*>(key.data()), key.size()};
}

Endpoint endpoint_from(const std::string& ip, int port, const char* argument) {
  const auto endpoint = Endpoint::parse(ip, 0);
  if (!endpoint)
    raise_error({endpoint.error().code, std::string(argument) + ": " + endpoint.error().message});
  if (port < 0 || port > 65535)
    raise_error(
        {ErrorCode::kInvalidArgument,
         std::string(argument) + ": expected a port from 0 to 65535, got " + std::to_string(port)});
  Endpoint result = *endpoint;
  result.port = static_cast<uint16_t>(port);
  return result;
}

template <class T> T value_or_raise(Result<T> result) {
  if (!result)
    raise_error(result.error());
  return std::move(*result);
}

// An answer that the network thread gives once, perhaps after the asker stopped waiting.
template <class T> class Answer {
public:
  void set(T value) {
    const std::lock_guard lock(mutex_);
    value_ = std::move(value);
    changed_.notify_all();
  }

  // Nothing if the time ran out. With the GIL held; raises what a signal handler raised.
  std::optional<T> wait(Duration timeout) {
    const net::SystemClock clock;
    const Time until = clock.now() + timeout;
    while (true) {
      {
        const py::gil_scoped_release release;
        std::unique_lock lock(mutex_);
        const Duration left = std::min(kSignalSlice, until - clock.now());
        changed_.wait_for(lock, std::chrono::nanoseconds(left),
                          [this] { return value_.has_value(); });
        if (value_)
          return std::move(value_);
      }
      if (PyErr_CheckSignals() != 0)
        throw py::error_already_set();
      if (clock.now() >= until)
        return std::nullopt;
    }
  }

private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<T> value_;
};

// The newest alive map of a grid, handed from the network thread to Python. Dies on either side: it
// must hold nothing of Python's.
class WatchedGrid {
public:
  explicit WatchedGrid(dht::Grid grid) : grid(std::move(grid)) {}

  void publish(std::shared_ptr<const dht::AliveMap> map) {
    const std::lock_guard lock(mutex_);
    map_ = std::move(map);
    changed_.notify_all();
  }
  std::shared_ptr<const dht::AliveMap> map() {
    const std::lock_guard lock(mutex_);
    return map_;
  }
  bool wait_for_version(uint64_t version, Duration timeout) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::nanoseconds(timeout),
                             [&] { return map_ != nullptr && map_->version >= version; });
  }

  const dht::Grid grid;

private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<const dht::AliveMap> map_;
};

py::tuple alive_tuple(const dht::Grid& grid, const dht::AliveMap& map) {
  std::vector<py::tuple> servers; // (ip, port, key, boot id), shared by the experts of a server
  for (const dht::AliveMap::Server& server : map.servers)
    servers.push_back(py::make_tuple(server.endpoint.ip_text(), server.endpoint.port,
                                     to_bytes(server.owner), server.boot_id));
  py::tuple experts(map.experts.size());
  for (size_t i = 0; i < map.experts.size(); ++i) {
    const dht::AliveMap::Expert& expert = map.experts[i];
    const py::tuple& server = servers[expert.server];
    experts[i] = py::make_tuple(expert.flat_id, grid.uid(expert.flat_id), server[0], server[1],
                                server[2], server[3]);
  }
  return experts;
}

using Peers = std::vector<std::pair<std::string, int>>;
using GridKey = std::pair<std::string, std::vector<int64_t>>;

class Network {
public:
  Network(NetThreadHandle& thread, const std::optional<py::bytes>& seed, const std::string& host,
          int port, const Peers& initial_peers, const std::string& network_id, bool client_mode)
      : thread_(thread), owner_(getpid()) {
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
      const py::gil_scoped_release release;
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
    const py::gil_scoped_release release;
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
    const std::shared_ptr<net::UdpDriver> held = driver();
    auto found = watched_.find({prefix, grid});
    if (found == watched_.end())
      found = watched_.emplace(GridKey{prefix, grid}, Watched{parse_grid(prefix, grid)}).first;
    const std::shared_ptr<WatchedGrid> watched = found->second.grid;
    held->post([watched, every](auto& core, Time now, WallMs) {
      core.search.watch(now, watched->grid, every,
                        [watched](auto map) { watched->publish(std::move(map)); });
    });
  }

  py::tuple alive(const std::string& prefix, const std::vector<int64_t>& grid) {
    Watched& watched = find_watched(prefix, grid);
    const auto map = watched.grid->map();
    if (map == nullptr)
      return py::make_tuple(0, py::tuple());
    if (!watched.python_map || watched.python_version != map->version) {
      watched.python_map = py::make_tuple(map->version, alive_tuple(watched.grid->grid, *map));
      watched.python_version = map->version;
    }
    return watched.python_map;
  }

  uint64_t alive_version(const std::string& prefix, const std::vector<int64_t>& grid) {
    const auto map = find_watched(prefix, grid).grid->map();
    return map == nullptr ? 0 : map->version;
  }

  size_t other_schemas(const std::string& prefix, const std::vector<int64_t>& grid) {
    const auto map = find_watched(prefix, grid).grid->map();
    return map == nullptr ? 0 : map->other_schemas;
  }

  bool wait_alive(const std::string& prefix, const std::vector<int64_t>& grid, uint64_t version,
                  double timeout) {
    const std::shared_ptr<WatchedGrid> watched = find_watched(prefix, grid).grid;
    const Time until = clock_.now() + seconds(timeout);
    while (true) {
      {
        const py::gil_scoped_release release;
        const Duration left = std::min(kSignalSlice, until - clock_.now());
        if (watched->wait_for_version(version, left))
          return true;
      }
      if (PyErr_CheckSignals() != 0)
        throw py::error_already_set();
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
  using Served = dht::Declarer::Served;

  std::shared_ptr<net::UdpDriver> driver() {
    check_not_forked(owner_);
    if (driver_ == nullptr)
      raise_error({ErrorCode::kShuttingDown, "this network was shut down"});
    return driver_;
  }

  void post(net::UdpDriver::Command command) { driver()->post(std::move(command)); }

  void run(const net::UdpDriver::Command& command) {
    std::shared_ptr<net::UdpDriver> held = driver();
    const py::gil_scoped_release release;
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

  static std::vector<dht::ExpertUid> parse_uids(const std::vector<std::string>& uids,
                                                const char* argument) {
    if (uids.size() > Limits::kDeclaredExperts)
      raise_error({ErrorCode::kInvalidArgument,
                   std::string(argument) + ": at most " + std::to_string(Limits::kDeclaredExperts) +
                       " are allowed, got " + std::to_string(uids.size())});
    std::vector<dht::ExpertUid> parsed;
    for (const std::string& uid : uids) {
      Result<dht::ExpertUid> one = dht::parse_uid(uid);
      if (!one)
        raise_error({one.error().code, std::string(argument) + ": " + one.error().message});
      parsed.push_back(std::move(*one));
    }
    return parsed;
  }

  static std::shared_ptr<WatchedGrid> parse_grid(const std::string& prefix,
                                                 const std::vector<int64_t>& size) {
    return std::make_shared<WatchedGrid>(value_or_raise(dht::Grid::make(prefix, size)));
  }

  static Served served_from(const std::vector<std::string>& uids,
                            const std::vector<uint64_t>& schema_hashes,
                            const std::vector<std::string>& addresses, int tcp_port,
                            uint64_t boot_id, double period, double expiry) {
    if (schema_hashes.size() != uids.size())
      raise_error({ErrorCode::kInvalidArgument, "schema_hashes: expected one for each of " +
                                                    std::to_string(uids.size()) + " uids, got " +
                                                    std::to_string(schema_hashes.size())});
    if (tcp_port < 1)
      raise_error({ErrorCode::kInvalidArgument,
                   "port: expected 1 to 65535, got " + std::to_string(tcp_port)});
    if (addresses.size() > Limits::kNodeAddresses)
      raise_error(
          {ErrorCode::kInvalidArgument,
           "addresses: at most " + std::to_string(Limits::kNodeAddresses) + " are allowed"});
    if (!(period >= 0.01) || !(expiry > period) || expiry * 1e3 > double{Limits::kRecordLifetimeMs})
      raise_error({ErrorCode::kInvalidArgument,
                   "update_period, expiration: expected 0.01 <= period < expiration <= 600 "
                   "seconds, got " +
                       std::to_string(period) + " and " + std::to_string(expiry)});
    Served served;
    const std::vector<dht::ExpertUid> parsed = parse_uids(uids, "uids");
    for (size_t i = 0; i < parsed.size(); ++i)
      served.experts.push_back({parsed[i], schema_hashes[i]});
    for (const std::string& address : addresses)
      served.addresses.push_back(endpoint_from(address, tcp_port, "addresses"));
    served.tcp_port = static_cast<uint16_t>(tcp_port);
    served.boot_id = boot_id;
    served.version = "1";
    served.period = seconds(period);
    served.expiry_ms = static_cast<uint64_t>(expiry * 1e3);
    return served;
  }

  // Guarded by the GIL.
  struct Watched {
    std::shared_ptr<WatchedGrid> grid;
    uint64_t python_version = 0;
    py::object python_map = {}; // that version, for callers that ask again
  };

  Watched& find_watched(const std::string& prefix, const std::vector<int64_t>& grid) {
    check_not_forked(owner_);
    const auto found = watched_.find({prefix, grid});
    if (found == watched_.end())
      raise_error({closed() ? ErrorCode::kShuttingDown : ErrorCode::kInvalidArgument,
                   closed() ? "this network was shut down"
                            : "prefix: '" + prefix + "' is not watched with this grid"});
    return found->second;
  }

  NetThreadHandle& thread_;
  pid_t owner_;
  net::SystemClock clock_;
  crypto::PublicKey public_key_{};
  uint16_t port_ = 0;
  // Shared with callers in other threads that are inside a method while close() runs.
  std::shared_ptr<net::UdpDriver> driver_;
  std::map<GridKey, Watched> watched_;
  uint64_t last_seq_ = 0; // network thread only
};

// --- HELLO ---------------------------------------------------------------------------------------

class HelloResponder {
public:
  HelloResponder(NetThreadHandle& thread, const py::bytes& seed, const std::string& host, int port,
                 const std::string& network_id)
      : owner_(getpid()) {
    const crypto::Identity identity = identity_from(seed);
    const Endpoint bind = endpoint_from(host, port, "port");
    net::NetThread& net = thread.get();
    auto opened = [&] {
      const py::gil_scoped_release release;
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
    const py::gil_scoped_release release;
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
    const py::gil_scoped_release release;
    return net::HelloQuery::open(net, peer, network_id);
  }());
  bool done = false;
  while (!done && clock.now() < until) {
    {
      const py::gil_scoped_release release;
      done = query->wait(std::min(kSignalSlice, until - clock.now()));
    }
    if (PyErr_CheckSignals() != 0)
      throw py::error_already_set();
  }
  const std::optional<crypto::PublicKey> key = done ? query->key() : std::nullopt;
  const py::gil_scoped_release release;
  query.reset();
  const py::gil_scoped_acquire acquire;
  return key ? std::optional(to_bytes(*key)) : std::nullopt;
}

constexpr const char* kNetworkId = "learning_at_home";

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
}

} // namespace lah::bindings
