// CallClient for RemoteExpert and GatingFunction. Waiting releases the GIL and comes up for air to
// let Ctrl-C through.
#include <pybind11/stl.h>

#include <atomic>

#include "batching/byte_pool.hpp"
#include "bindings/core.hpp"
#include "bindings/net_thread.hpp"
#include "net/call_client.hpp"
#include "rpc/coded_tensors.hpp"

namespace py = pybind11;

namespace lah::bindings {
using namespace py::literals;
namespace {

constexpr Duration kSignalSlice = 50 * kMillisecond;
constexpr Duration kPingTimeout = 10 * kSecond;
// A core that sleeps takes some 50 us to wake, and a call crosses six threads. After a short call
// the next caller looks for its answer a while before it sleeps, which keeps one core awake for
// them. After a longer one it does not: cores that compute are not to be disturbed.
constexpr Duration kShortCall = 1 * kMillisecond;
constexpr Duration kLook = 250 * kMicrosecond;
constexpr size_t kKeptBytes = size_t{128} << 20; // memory for encoded tensors, between calls

// Memory lent to ZeroMQ stays referenced by frames for a while, also after a timeout: keep the
// tensors until not busy.
struct Lease {
  std::shared_ptr<const char> token = std::make_shared<const char>('\0');
  bool busy() const { return token.use_count() > 1; }
};

struct CallTuple {
  std::vector<rpc::PeerId> holders;
  std::string uid;
  int method;
  bool training;
  uint8_t priority;
  std::vector<TensorTuple> inputs;
  std::vector<TensorTuple> outputs;
  std::vector<int> codecs; // of the inputs
  int result_codec;
};

CallTuple call_from(const py::handle& item) {
  const auto tuple = item.cast<py::tuple>();
  return {tuple[0].cast<std::vector<rpc::PeerId>>(),
          tuple[1].cast<std::string>(),
          tuple[2].cast<int>(),
          tuple[3].cast<bool>(),
          tuple[4].cast<uint8_t>(),
          tuple[5].cast<std::vector<TensorTuple>>(),
          tuple[6].cast<std::vector<TensorTuple>>(),
          tuple[7].cast<std::vector<int>>(),
          tuple[8].cast<int>()};
}

net::GroupedCall grouped(const CallTuple& tuple, Time deadline, bool adaptive, const Lease& lease) {
  if (tuple.holders.empty())
    raise_error({ErrorCode::kInvalidArgument, "a call needs a server to go to"});
  net::GroupedCall grouped;
  const auto method = static_cast<rpc::Method>(tuple.method);
  grouped.collect = method == rpc::Method::kInfo    ? Limits::kDescriptionBytes
                    : method == rpc::Method::kState ? Limits::kCallBytes
                                                    : 0;
  grouped.call.holders = tuple.holders;
  grouped.call.adaptive = adaptive;
  rpc::OutgoingCall& call = grouped.call.call;
  call.header.uid = tuple.uid;
  call.header.method = method;
  call.header.training = tuple.training;
  call.header.priority = tuple.priority;
  call.deadline = deadline;
  call.keep = lease.token;
  if (tuple.inputs.size() > Limits::kTensors || tuple.outputs.size() > Limits::kTensors)
    raise_error({ErrorCode::kInvalidArgument,
                 "one call carries at most " + std::to_string(Limits::kTensors) + " tensors"});
  for (const TensorTuple& input : tuple.inputs) {
    call.header.tensors.push_back(meta_from(input));
    call.tensors.emplace_back(reinterpret_cast<const std::byte*>(std::get<0>(input)),
                              call.header.tensors.back().wire_bytes);
  }
  for (const TensorTuple& output : tuple.outputs)
    grouped.outputs.push_back(
        {meta_from(output), reinterpret_cast<std::byte*>(std::get<0>(output))});
  return grouped;
}

// The tensors' codecs, and room for results to arrive in theirs. True if something is to be
// encoded.
bool set_codecs(const CallTuple& tuple, ByteAllocator& allocator, rpc::OutgoingCall& call,
                std::vector<net::OutputTensor>& outputs) {
  bool lossy = false;
  for (size_t i = 0; i < std::min(tuple.codecs.size(), call.header.tensors.size()); ++i) {
    rpc::TensorMeta& tensor = call.header.tensors[i];
    tensor = rpc::with_codec(std::move(tensor), static_cast<rpc::Codec>(tuple.codecs[i]));
    lossy = lossy || tensor.codec != rpc::Codec::kRaw;
  }
  call.header.result_codec = static_cast<rpc::Codec>(tuple.result_codec);
  for (net::OutputTensor& output : outputs) {
    const rpc::TensorMeta coded = rpc::with_codec(output.expected, call.header.result_codec);
    if (coded.codec == rpc::Codec::kRaw)
      continue;
    output.codec = coded.codec;
    output.wire = allocator.allocate(coded.wire_bytes);
    if (!output.wire)
      throw std::bad_alloc();
  }
  return lossy;
}

py::tuple outcome_tuple(const net::CallGroup& group, size_t i) {
  const rpc::Outcome& outcome = group.outcome(i);
  return py::make_tuple(
      static_cast<int>(outcome.error.code), outcome.error.message, py::bytes(outcome.error.detail),
      outcome.error.retry_after_ms, outcome.queue_us, outcome.service_us, outcome.batch_rows,
      py::bytes(group.collected(i)), outcome.wait_us, static_cast<double>(outcome.elapsed) / 1e9,
      outcome.peer, outcome.retries + outcome.resends, outcome.hedged, group.wire_bytes(i));
}

class ClientCore {
public:
  ClientCore(NetThreadHandle& thread, const py::bytes& seed)
      : owner_(getpid()), thread_(thread), bytes_(std::make_unique<batching::BytePool>(kKeptBytes)),
        client_(
            std::make_unique<net::CallClient>(thread.get(), thread.zmq(), identity_from(seed))) {}
  ~ClientCore() {
    if (getpid() != owner_) {
      leak(std::move(client_));
      leak(std::move(bytes_));
      return;
    }
    const GilRelease release;
    client_.reset();
  }
  ClientCore(const ClientCore&) = delete;
  ClientCore& operator=(const ClientCore&) = delete;

  rpc::PeerId connect(const std::string& host, uint16_t port, const std::optional<py::bytes>& key) {
    const auto endpoint = Endpoint::parse(host, port);
    if (!endpoint)
      raise_error(endpoint.error());
    return client().connect(*endpoint, key ? std::optional(public_key_from(*key)) : std::nullopt);
  }

  // (outcomes, lease): one outcome a call, in order.
  // `adaptive` lets a call end sooner than `timeout` by what such calls took so far.
  py::tuple call_many(const py::list& calls, double timeout, bool adaptive, uint32_t k_min,
                      double timeout_after_k_min, uintptr_t source, uint32_t k, uint64_t tokens,
                      const std::vector<uint64_t>& row_offsets) {
    const Duration allowed = seconds(timeout);
    const Time deadline = clock_.now() + allowed;
    net::WaitPlan plan{k_min,
                       seconds(timeout_after_k_min),
                       reinterpret_cast<const int32_t*>(source),
                       k,
                       tokens,
                       row_offsets};
    check_not_forked(owner_);
    Lease lease;
    std::vector<net::GroupedCall> specs;
    bool lossy = false;
    for (const py::handle item : calls) {
      const CallTuple tuple = call_from(item);
      net::GroupedCall& spec = specs.emplace_back(grouped(tuple, deadline, adaptive, lease));
      lossy |= set_codecs(tuple, *bytes_, spec.call.call, spec.outputs);
    }
    if (lossy)
      encode(specs);
    auto group = std::make_shared<net::CallGroup>(std::move(specs));
    client().start(group);
    wait(*group, deadline, plan);
    py::list outcomes;
    for (size_t i = 0; i < group->size(); ++i)
      outcomes.append(outcome_tuple(*group, i));
    return py::make_tuple(outcomes, lease);
  }

  std::optional<double> ping(rpc::PeerId peer, double timeout) {
    struct Answer {
      std::mutex mutex;
      std::condition_variable changed;
      std::optional<Duration> round_trip;
      bool done = false;
    };
    auto answer = std::make_shared<Answer>(); // the answer may come after we stopped waiting
    client().ping(peer, seconds(timeout), [answer](const Error& error, Duration round_trip) {
      const std::lock_guard lock(answer->mutex);
      answer->done = true;
      if (error.code == ErrorCode::kNone)
        answer->round_trip = round_trip;
      answer->changed.notify_all();
    });
    const Time until = clock_.now() + seconds(timeout) + kSecond;
    while (clock_.now() < until) {
      {
        const GilRelease release;
        std::unique_lock lock(answer->mutex);
        answer->changed.wait_for(lock, std::chrono::nanoseconds(kSignalSlice),
                                 [&] { return answer->done; });
        if (answer->done)
          break;
      }
      check_signals();
    }
    const std::lock_guard lock(answer->mutex);
    if (!answer->round_trip)
      return std::nullopt;
    return static_cast<double>(*answer->round_trip) / 1e9;
  }

  // In seconds, of the quickest ping that was answered, if one was; sends another, and does not
  // wait.
  std::optional<double> round_trip(rpc::PeerId peer) {
    net::CallClient& calls = client();
    calls.ping(peer, kPingTimeout,
               [peer, trips = round_trips_](const Error& error, Duration round_trip) {
                 const std::lock_guard at_answer(trips->mutex);
                 if (error.code != ErrorCode::kNone)
                   return;
                 Duration& quickest = trips->quickest.try_emplace(peer, round_trip).first->second;
                 quickest = std::min(quickest, round_trip);
               });
    const std::lock_guard lock(round_trips_->mutex);
    const auto known = round_trips_->quickest.find(peer);
    if (known == round_trips_->quickest.end())
      return std::nullopt;
    return static_cast<double>(known->second) / 1e9;
  }

  std::vector<rpc::PeerId> down() { return client().down(); }

  py::dict counters() {
    const rpc::ReplicaCalls::Counters counters = [&] {
      net::CallClient& calls = client();
      const GilRelease release;
      return calls.counters();
    }();
    return py::dict("calls"_a = counters.calls, "retries"_a = counters.retries,
                    "hedges"_a = counters.hedges, "hedges_won"_a = counters.hedges_won,
                    "over_budget"_a = counters.over_budget);
  }

private:
  net::CallClient& client() {
    check_not_forked(owner_);
    return *client_;
  }

  static void check_signals() {
    if (PyErr_CheckSignals() != 0)
      throw py::error_already_set();
  }

  void encode(std::vector<net::GroupedCall>& specs) {
    const GilRelease release;
    for (net::GroupedCall& spec : specs)
      if (!rpc::encode_tensors(spec.call.call, *bytes_))
        throw std::bad_alloc();
  }

  void wait(net::CallGroup& group, Time deadline, const net::WaitPlan& plan) {
    // rpc::Client ends every call by its deadline; the grace covers a network thread that is late
    // itself.
    const Time last = deadline + kSecond / 4;
    const Time begun = clock_.now();
    if (short_calls_.load() && look(group, std::min(last, begun + kLook)))
      return end(group, {});
    try {
      while (true) {
        bool done = false;
        {
          const GilRelease release;
          done = group.wait(clock_, std::min(last, clock_.now() + kSignalSlice), plan);
        }
        if (done || clock_.now() >= last)
          break;
        check_signals();
      }
    } catch (...) {
      end(group, {ErrorCode::kCancelled, "interrupted"});
      throw;
    }
    short_calls_.store(clock_.now() - begun < kShortCall);
    end(group, {ErrorCode::kCancelled, "not answered within timeout_after_k_min"});
  }

  bool look(const net::CallGroup& group, Time until) const {
    const GilRelease release;
    return group.look(clock_, until);
  }

  void end(net::CallGroup& group, const Error& error) {
    const GilRelease release;
    if (group.close(error))
      client_->cancel(group.shared_from_this());
  }

  struct RoundTrips {
    std::mutex mutex;
    std::map<rpc::PeerId, Duration> quickest;
  };

  pid_t owner_;
  NetThreadHandle& thread_;
  net::SystemClock clock_;
  std::unique_ptr<batching::BytePool> bytes_; // for what is encoded, and arrives so
  std::unique_ptr<net::CallClient> client_;
  std::atomic<bool> short_calls_{false}; // the last ones were, so the next may be
  std::shared_ptr<RoundTrips> round_trips_ = std::make_shared<RoundTrips>();
};

} // namespace

void bind_calls(py::module_& m) {
  py::class_<Lease>(m, "Lease").def_property_readonly("busy", &Lease::busy);
  py::class_<ClientCore>(m, "ClientCore")
      .def(py::init<NetThreadHandle&, const py::bytes&>(), py::keep_alive<1, 2>(),
           py::arg("thread"), py::arg("seed"))
      .def("connect", &ClientCore::connect, py::arg("host"), py::arg("port"), py::arg("key"))
      .def("call_many", &ClientCore::call_many, py::arg("calls"), py::arg("timeout"),
           py::arg("adaptive") = false, py::arg("k_min") = 0, py::arg("timeout_after_k_min") = 0.0,
           py::arg("source") = 0, py::arg("k") = 1, py::arg("tokens") = 0,
           py::arg("row_offsets") = std::vector<uint64_t>{0})
      .def("ping", &ClientCore::ping, py::arg("peer"), py::arg("timeout"))
      .def("round_trip", &ClientCore::round_trip, py::arg("peer"))
      .def("down", &ClientCore::down)
      .def("counters", &ClientCore::counters);
}

} // namespace lah::bindings
