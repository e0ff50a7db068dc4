// Batcher and CallServer for the runtime: one call returns a batch, one returns its results; the
// GIL is released inside.
#include <pybind11/stl.h>

#include <atomic>
#include <mutex>

#include "batching/byte_pool.hpp"
#include "bindings/core.hpp"
#include "bindings/net_thread.hpp"
#include "net/call_server.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

using TensorSpecTuple = std::pair<int, std::vector<uint64_t>>; // dtype, instance shape

std::vector<batching::TensorSpec> specs_from(const std::vector<TensorSpecTuple>& tuples) {
  std::vector<batching::TensorSpec> specs;
  for (const auto& [dtype, shape] : tuples)
    specs.push_back({static_cast<DType>(dtype), shape});
  return specs;
}

// A request's memory as Python sees it; it stays until the last tensor in it is gone.
struct LentBytes {
  MutableByteView bytes;
  std::shared_ptr<const void> owner;
};

// Python objects whose last use ends on threads without the GIL. They pile up here until somebody
// comes by who holds it.
class HeldObjects {
public:
  static std::shared_ptr<const void> hold(const std::shared_ptr<HeldObjects>& self,
                                          py::object object) {
    return {static_cast<const void*>(object.release().ptr()), [self](const void* held) {
              const std::lock_guard lock(self->mutex_);
              self->unused_.push_back(static_cast<PyObject*>(const_cast<void*>(held)));
            }};
  }

  // With the GIL.
  void drop() {
    std::vector<PyObject*> unused;
    {
      const std::lock_guard lock(mutex_);
      unused.swap(unused_);
    }
    for (PyObject* object : unused)
      Py_DECREF(object);
  }

private:
  std::mutex mutex_;
  std::vector<PyObject*> unused_; // leaked if nobody comes any more
};

// A caller's Ed25519 key as the X25519 key that its connections prove.
crypto::ExchangeKey exchange_key_from(const py::bytes& key) {
  const auto exchange = crypto::exchange_key(public_key_from(key));
  if (!exchange)
    raise_error({ErrorCode::kInvalidArgument, "key: expected an Ed25519 public key"});
  return *exchange;
}

void check_listed(bool listed) {
  if (!listed)
    raise_error({ErrorCode::kInvalidArgument,
                 "an access list takes at most " + std::to_string(Limits::kAccessKeys) + " keys"});
}

// A server's C++ half: the batcher, the memory of its requests, and (once listening) its socket.
class ServerCore {
public:
  ServerCore()
      : owner_(getpid()), bytes_(std::make_unique<batching::BytePool>(size_t{512} << 20)),
        batcher_(std::make_unique<batching::Batcher>(clock_, *bytes_)),
        local_(std::make_unique<batching::LocalCalls>(*batcher_, *bytes_, clock_)) {}

  ~ServerCore() {
    if (getpid() != owner_) {
      leak(std::move(server_));
      leak(std::move(local_));
      leak(std::move(batcher_));
      leak(std::move(bytes_));
      return;
    }
    {
      const GilRelease release;
      batcher_->stop();
      server_.reset();
    }
    held_->drop();
  }
  ServerCore(const ServerCore&) = delete;
  ServerCore& operator=(const ServerCore&) = delete;

  batching::Batcher& batcher() {
    check_not_forked(owner_);
    return *batcher_;
  }

  uint16_t listen(NetThreadHandle& thread, const py::bytes& seed, const std::string& host,
                  uint16_t port, bool encrypted, uint64_t boot_id,
                  const std::optional<std::vector<py::bytes>>& allow,
                  const std::vector<py::bytes>& deny) {
    const auto address = Endpoint::parse(host, port);
    if (!address)
      raise_error(address.error());
    net::AccessList access;
    bool listed = true;
    if (allow)
      access.allow_only_listed();
    for (const py::bytes& key : allow.value_or(std::vector<py::bytes>{}))
      listed = listed && access.allow(exchange_key_from(key));
    for (const py::bytes& key : deny)
      listed = listed && access.deny(exchange_key_from(key));
    check_listed(listed);
    auto server =
        std::make_unique<net::CallServer>(thread.get(), thread.zmq(), identity_from(seed),
                                          batcher(), *local_, *bytes_, boot_id, std::move(access));
    const auto bound = [&] {
      const GilRelease release;
      return server->listen(*address, encrypted);
    }();
    if (!bound)
      raise_error(bound.error());
    const GilRelease release;
    const std::lock_guard lock(server_mutex_);
    server_ = std::move(server);
    return *bound;
  }

  void deny(const py::bytes& key) {
    const crypto::ExchangeKey exchange = exchange_key_from(key);
    const bool listed = [&] {
      const GilRelease release;
      const std::lock_guard lock(server_mutex_);
      return server_ == nullptr || server_->deny(exchange);
    }();
    check_listed(listed);
  }

  void stop() {
    batching::Batcher& batcher = this->batcher();
    const GilRelease release;
    batcher.stop();
  }

  void unlisten() {
    {
      const GilRelease release;
      std::unique_ptr<net::CallServer> leaving; // ends after the lock: its callers take a moment
      const std::lock_guard lock(server_mutex_);
      leaving = std::move(server_);
    }
    held_->drop();
  }

  void close() {
    stop();
    unlisten();
  }

  // (batch id, pool, training, offsets, rows of each request, LentBytes or None: the batch is in
  // the slab), an int (the slab bytes needed), or None on timeout. Raises StopIteration once
  // stopped.
  py::object take(uint32_t lane, uintptr_t slab, size_t slab_bytes, double timeout) {
    batching::Batch batch;
    size_t needed = 0;
    batching::Taken taken = batching::Taken::kTimeout;
    {
      const GilRelease release;
      taken = batcher().take(lane, {reinterpret_cast<std::byte*>(slab), slab_bytes},
                             clock_.now() + seconds(timeout), batch, needed);
    }
    held_->drop();
    if (taken == batching::Taken::kStopped)
      throw py::stop_iteration();
    if (taken == batching::Taken::kTimeout)
      return py::none();
    ++python_entries_;
    if (taken == batching::Taken::kSlabTooSmall)
      return py::int_(needed);
    return py::make_tuple(batch.id, batch.pool, batch.training, batch.offsets, batch.request_rows,
                          batch.owner ? py::cast(LentBytes{batch.lent, std::move(batch.owner)})
                                      : py::object(py::none()));
  }

  // `keep` (the output tensors, or None): nothing else will write to the outputs as long as it
  // lives, so they need not be copied.
  void finish(uint64_t batch, const std::vector<uint32_t>& requests,
              const std::vector<std::pair<uintptr_t, size_t>>& outputs, const py::object& keep) {
    batching::Batcher& batcher = this->batcher();
    held_->drop();
    std::shared_ptr<const void> keeper;
    if (!keep.is_none())
      keeper = HeldObjects::hold(held_, keep);
    {
      const GilRelease release;
      std::vector<ByteView> views;
      for (const auto& [address, size] : outputs)
        views.emplace_back(reinterpret_cast<const std::byte*>(address), size);
      batcher.finish(batch, requests, views, std::move(keeper));
    }
    ++python_entries_;
  }

  void fail(uint64_t batch, const std::vector<uint32_t>& requests, int code,
            const std::string& message, const std::string& detail) {
    const GilRelease release;
    batcher().fail(batch, requests, {static_cast<ErrorCode>(code), message, detail});
  }

  uint64_t submit(const std::string& uid, int method, bool training,
                  const std::vector<TensorTuple>& tensors, double timeout) {
    rpc::Call call;
    call.uid = uid;
    call.method = static_cast<rpc::Method>(method);
    call.training = training;
    std::vector<ByteView> views;
    for (const TensorTuple& tensor : tensors) {
      call.tensors.push_back(meta_from(tensor));
      views.emplace_back(reinterpret_cast<const std::byte*>(std::get<0>(tensor)),
                         call.tensors.back().wire_bytes);
    }
    check_not_forked(owner_);
    const auto ticket = [&] {
      const GilRelease release;
      return local_->submit(std::move(call), views, seconds(timeout));
    }();
    if (!ticket)
      raise_error(ticket.error());
    return *ticket;
  }

  // The result's stream of bytes, or None if it is not there within `timeout`.
  std::optional<py::bytes> wait(uint64_t ticket, double timeout) {
    check_not_forked(owner_);
    const auto answer = [&] {
      const GilRelease release;
      return local_->wait(ticket, clock_.now() + seconds(timeout));
    }();
    if (!answer)
      return std::nullopt;
    if (answer->error.code != ErrorCode::kNone)
      raise_error(answer->error);
    return py::bytes(reinterpret_cast<const char*>(answer->result.bytes.get()),
                     rpc::stream_bytes(answer->result.header.tensors));
  }

  py::dict counters() {
    const auto batching = batcher().counters();
    rpc::Server::Counters calls;
    net::Admission::Counters admission;
    {
      const GilRelease release;
      const std::lock_guard lock(server_mutex_);
      if (server_) {
        calls = server_->counters();
        admission = server_->admission();
      }
    }
    py::dict out;
    out["requests"] = batching.requests;
    out["batches"] = batching.batches;
    out["rows"] = batching.rows;
    out["expired"] = batching.expired + calls.expired;
    out["failed"] = batching.failed;
    out["lent"] = batching.lent;
    out["refused"] = calls.refused;
    out["bad_frames"] = calls.bad_frames;
    out["repeated"] = calls.repeated;
    out["connections"] = admission.connections;
    out["refused_connections"] = admission.refused_connections;
    out["denied"] = admission.denied;
    out["python_entries"] = python_entries_.load();
    return out;
  }

private:
  pid_t owner_;
  net::SystemClock clock_;
  std::shared_ptr<HeldObjects> held_ = std::make_shared<HeldObjects>();
  std::unique_ptr<batching::BytePool> bytes_;
  std::unique_ptr<batching::Batcher> batcher_;
  std::unique_ptr<batching::LocalCalls> local_;
  std::mutex server_mutex_; // counters() may run while another thread closes; taken without the GIL
  std::unique_ptr<net::CallServer> server_;
  std::atomic<uint64_t> python_entries_{0};
};

uint32_t add_pool(ServerCore& self, std::string uid, int method,
                  const std::vector<TensorSpecTuple>& inputs,
                  const std::vector<TensorSpecTuple>& outputs, uint64_t max_batch_rows,
                  uint64_t min_batch_rows, double min_batch_wait, size_t queue_limit,
                  uint32_t lane) {
  batching::PoolSpec spec;
  spec.uid = std::move(uid);
  spec.method = static_cast<rpc::Method>(method);
  spec.inputs = specs_from(inputs);
  spec.outputs = specs_from(outputs);
  spec.max_batch_rows = max_batch_rows;
  spec.min_batch_rows = min_batch_rows;
  spec.min_batch_wait = seconds(min_batch_wait);
  spec.queue_limit = queue_limit;
  spec.lane = lane;
  return self.batcher().add_pool(std::move(spec));
}

} // namespace

void bind_batching(py::module_& m) {
  py::class_<LentBytes>(m, "LentBytes", py::buffer_protocol()).def_buffer([](LentBytes& self) {
    return py::buffer_info(reinterpret_cast<uint8_t*>(self.bytes.data()),
                           static_cast<py::ssize_t>(self.bytes.size()));
  });
  py::class_<ServerCore>(m, "ServerCore")
      .def(py::init<>())
      .def("add_pool", &add_pool, py::arg("uid"), py::arg("method"), py::arg("inputs"),
           py::arg("outputs"), py::arg("max_batch_rows"), py::arg("min_batch_rows"),
           py::arg("min_batch_wait"), py::arg("queue_limit"), py::arg("lane"))
      .def("set_description",
           [](ServerCore& self, const std::string& uid, std::string json) {
             self.batcher().set_description(uid, std::move(json));
           })
      .def("listen", &ServerCore::listen, py::keep_alive<1, 2>(), py::arg("thread"),
           py::arg("seed"), py::arg("host"), py::arg("port"), py::arg("encrypted"),
           py::arg("boot_id"), py::arg("allow") = py::none(),
           py::arg("deny") = std::vector<py::bytes>{})
      .def("deny", &ServerCore::deny)
      .def("unlisten", &ServerCore::unlisten)
      .def("take", &ServerCore::take)
      .def("submit", &ServerCore::submit)
      .def("wait", &ServerCore::wait)
      .def("wait_us", [](ServerCore& self) { return self.batcher().wait_us(); })
      .def("finish", &ServerCore::finish, py::arg("batch"), py::arg("requests"), py::arg("outputs"),
           py::arg("keep") = py::none())
      .def("fail", &ServerCore::fail)
      .def("stop", &ServerCore::stop)
      .def("wake",
           [](ServerCore& self) {
             const GilRelease release;
             self.batcher().wake();
           })
      .def("close", &ServerCore::close)
      .def("counters", &ServerCore::counters);
}

} // namespace lah::bindings
