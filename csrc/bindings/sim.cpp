// The simulator for Python: whole networks of nodes in virtual time, on the caller's thread.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "bindings/core.hpp"
#include "sim/lookup_study.hpp"
#include "sim/swarm_check.hpp"

namespace py = pybind11;

namespace lah::bindings {
using namespace py::literals;
namespace {

std::vector<double> to_seconds(const std::vector<Duration>& durations) {
  std::vector<double> result;
  for (const Duration duration : durations)
    result.push_back(static_cast<double>(duration) / kSecond);
  return result;
}

// Seconds there and back, from the shortest to the longest; none: the regions of the world.
using RttRange = std::optional<std::pair<double, double>>;

sim::Faults links_from(const RttRange& rtt, double loss, double duplicate) {
  sim::Faults links = sim::Faults::geographic();
  if (rtt)
    links = {seconds(rtt->first) / 2, seconds(rtt->second) / 2};
  links.loss = loss;
  links.duplicate = duplicate;
  return links;
}

// A virtual hour may take minutes: Ctrl-C gets through between two virtual seconds.
void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0)
    throw py::error_already_set();
}

class Swarm {
public:
  Swarm(uint64_t seed, const RttRange& rtt, double loss, double duplicate, bool sealed)
      : net_(seed, links_from(rtt, loss, duplicate),
             sealed ? sim::CipherKind::kSealed : sim::CipherKind::kHash) {}

  size_t add(const std::vector<size_t>& peers, bool client_mode) {
    for (const size_t peer : peers)
      check(peer);
    return net_.add({.seeds = peers, .client_mode = client_mode});
  }
  void settle() {
    const py::gil_scoped_release release;
    net_.settle();
    for (size_t i = 0; i < net_.size(); ++i)
      net_.acquaint(i);
  }
  void run(double duration) {
    const Time until = net_.now() + seconds(duration);
    const py::gil_scoped_release release;
    while (net_.now() < until) {
      net_.run_for(std::min(until - net_.now(), kSecond));
      check_signals();
    }
  }
  void set_up(size_t node, bool up) { net_.set_up(check(node), up); }
  bool is_up(size_t node) { return net_.is_up(check(node)); }
  void set_frozen(size_t node, bool frozen) { net_.set_frozen(check(node), frozen); }
  void set_links(const RttRange& rtt, double loss, double duplicate) {
    net_.set_faults(links_from(rtt, loss, duplicate));
  }
  void set_partition(const std::vector<size_t>& apart) {
    std::vector<bool> beyond(net_.size());
    for (const size_t node : apart)
      beyond[check(node)] = true;
    const auto side = [beyond](size_t node) { return node < beyond.size() && beyond[node]; };
    if (apart.empty())
      net_.set_partition(nullptr);
    else
      net_.set_partition([side](size_t from, size_t to) { return side(from) != side(to); });
  }

  py::tuple store(size_t node, const py::bytes& name, const py::bytes& value, double expiration) {
    const WallMs wall = net_.network_wall(check(node));
    const std::string_view text = value;
    if (text.empty() || text.size() > Limits::kRecordPayloadBytes)
      raise_error({ErrorCode::kInvalidArgument, "value: expected 1 to " +
                                                    std::to_string(Limits::kRecordPayloadBytes) +
                                                    " bytes, got " + std::to_string(text.size())});
    const ByteView bytes = as_bytes(text);
    const dht::Record record =
        net_.node(node).sign(key_of(name), net_.node(node).next_seq(),
                             wall + static_cast<WallMs>(seconds(expiration) / kMillisecond),
                             {bytes.begin(), bytes.end()});
    const Time began = net_.now();
    const dht::StoreResult result = net_.store(node, record);
    return py::make_tuple(result.replicas, elapsed(began));
  }
  py::tuple get(size_t node, const py::bytes& name) {
    const Time began = net_.now();
    const dht::GetResult result = net_.get(check(node), key_of(name));
    py::list values;
    for (const dht::Record& record : result.records)
      if (!record.is_tombstone())
        values.append(
            py::bytes(reinterpret_cast<const char*>(record.payload.data()), record.payload.size()));
    return py::make_tuple(values, elapsed(began));
  }
  py::dict status(size_t node) {
    const dht::NodeStatus status = net_.node(check(node)).status();
    return py::dict("peers"_a = status.peers, "ready"_a = status.ready,
                    "isolated"_a = status.isolated, "records"_a = status.records,
                    "bytes_in"_a = status.bytes_in, "bytes_out"_a = status.bytes_out);
  }

  size_t size() const { return net_.size(); }
  double now() const { return elapsed(0); }
  uint64_t events() const { return net_.events(); }
  std::string log_hash() const { return net_.log_hash(); }

private:
  static dht::Id key_of(const py::bytes& name) {
    return dht::record_key("user", as_bytes(std::string_view(name)));
  }
  size_t check(size_t node) const {
    if (node >= net_.size())
      raise_error({ErrorCode::kInvalidArgument, "node: expected a number below " +
                                                    std::to_string(net_.size()) + ", got " +
                                                    std::to_string(node)});
    return node;
  }
  double elapsed(Time since) const { return static_cast<double>(net_.now() - since) / kSecond; }

  sim::VirtualNetwork net_;
};

using PyProgress = std::function<void(const std::string&, size_t, size_t)>;

py::dict study_lookups(size_t nodes, uint64_t seed, const RttRange& rtt, double loss, double dead,
                       size_t lookups, bool large_table, const PyProgress& progress) {
  sim::StudyOptions options;
  options.seed = seed;
  options.nodes = nodes;
  options.links = links_from(rtt, loss, 0);
  options.dead = dead;
  options.lookups = lookups;
  if (large_table)
    options.table_size = dht::TableSize::kLarge;
  const auto told = [&](const std::string& what, size_t done, size_t all) {
    check_signals();
    const py::gil_scoped_acquire gil;
    if (progress)
      progress(what, done, all);
  };
  const sim::StudyResult study = [&] {
    const py::gil_scoped_release release;
    return sim::study_lookups(options, told);
  }();
  return py::dict("gets"_a = to_seconds(study.gets), "closests"_a = to_seconds(study.closests),
                  "stores"_a = to_seconds(study.stores), "found"_a = study.found,
                  "get_datagrams"_a = study.get_datagrams, "true_replicas"_a = study.true_replicas,
                  "table_contacts"_a = study.table_contacts, "events"_a = study.events,
                  "log_hash"_a = study.log_hash);
}

py::dict check_swarm(uint64_t seed, size_t nodes, double duration, bool sealed) {
  sim::SwarmOptions options;
  options.seed = seed;
  options.nodes = nodes;
  options.duration = seconds(duration);
  options.cipher = sealed ? sim::CipherKind::kSealed : sim::CipherKind::kHash;
  const sim::SwarmReport report = [&] {
    const py::gil_scoped_release release;
    return sim::check_swarm(options, [](Time) { check_signals(); });
  }();
  return py::dict("asked"_a = report.asked, "found"_a = report.found,
                  "bytes_per_second"_a = report.bytes_per_second,
                  "operations_most"_a = report.operations_most, "violations"_a = report.violations,
                  "events"_a = report.events, "log_hash"_a = report.log_hash);
}

} // namespace

void bind_sim(py::module_& m) {
  py::class_<Swarm>(m, "Swarm")
      .def(py::init<uint64_t, const RttRange&, double, double, bool>(), py::arg("seed"),
           py::arg("rtt"), py::arg("loss"), py::arg("duplicate"), py::arg("sealed"))
      .def("add", &Swarm::add, py::arg("peers"), py::arg("client_mode"))
      .def("settle", &Swarm::settle)
      .def("run", &Swarm::run, py::arg("duration"))
      .def("set_up", &Swarm::set_up, py::arg("node"), py::arg("up"))
      .def("is_up", &Swarm::is_up, py::arg("node"))
      .def("set_frozen", &Swarm::set_frozen, py::arg("node"), py::arg("frozen"))
      .def("set_links", &Swarm::set_links, py::arg("rtt"), py::arg("loss"), py::arg("duplicate"))
      .def("set_partition", &Swarm::set_partition, py::arg("apart"))
      .def("store", &Swarm::store, py::arg("node"), py::arg("name"), py::arg("value"),
           py::arg("expiration"))
      .def("get", &Swarm::get, py::arg("node"), py::arg("name"))
      .def("status", &Swarm::status, py::arg("node"))
      .def_property_readonly("size", &Swarm::size)
      .def_property_readonly("now", &Swarm::now)
      .def_property_readonly("events", &Swarm::events)
      .def_property_readonly("log_hash", &Swarm::log_hash);
  m.def("study_lookups", &study_lookups, py::arg("nodes"), py::arg("seed"), py::arg("rtt"),
        py::arg("loss"), py::arg("dead"), py::arg("lookups"), py::arg("large_table"),
        py::arg("progress"));
  m.def("check_swarm", &check_swarm, py::arg("seed"), py::arg("nodes"), py::arg("duration"),
        py::arg("sealed"));
}

} // namespace lah::bindings
