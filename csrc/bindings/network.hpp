// Network: a DHT node for TesseractNetwork. Calls that wait for other nodes return an Answer.
#pragma once

#include "bindings/listener.hpp"
#include "bindings/net_thread.hpp"
#include "bindings/watched_grids.hpp"

namespace lah::bindings {

using Peers = std::vector<std::pair<std::string, int>>;

class Network {
public:
  Network(NetThreadHandle& thread, const std::optional<pybind11::bytes>& seed,
          const std::string& host, int port, const Peers& initial_peers,
          const std::string& network_id, bool client_mode, bool large_table,
          const std::optional<pybind11::bytes>& state,
          const std::optional<pybind11::bytes>& run_owner, const pybind11::bytes& certificate);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  void close(); // every open call ends
  bool closed() const { return driver_ == nullptr; }
  uint16_t port() const { return port_; }
  pybind11::bytes public_key() const { return to_bytes(public_key_); }
  pybind11::dict status();
  // What a later Network takes as `state`; with the seed inside if one is given.
  pybind11::bytes save_state(const std::optional<pybind11::bytes>& seed); // network_state.cpp
  void renew_certificate(const pybind11::bytes& certificate);
  std::shared_ptr<Answer> wait_ready(double timeout);                            // bool
  std::shared_ptr<Answer> ping(const std::string& ip, int port, double timeout); // s or None

  // --- network_records.cpp
  // [(owner's key, payload)], newest first. `consistency`: "first", "quorum" or "all".
  // What an earlier get that was at most `max_age` seconds ago found will do.
  std::shared_ptr<Answer> get(const pybind11::bytes& name, const std::string& consistency,
                              double max_age, double timeout);
  // What get() gives, for each name.
  std::shared_ptr<Answer> get_many(const std::vector<pybind11::bytes>& names,
                                   const std::string& consistency, double max_age, double timeout);
  // The number of copies.
  std::shared_ptr<Answer> store(const pybind11::bytes& name, const pybind11::bytes& value,
                                double expiration, double timeout);
  // What store() gives, for each (name, value).
  std::shared_ptr<Answer>
  store_many(const std::vector<std::pair<pybind11::bytes, pybind11::bytes>>& values,
             double expiration, double timeout);
  // The listener is told what the name holds, now and whenever that changes, until it is to stop.
  void listen(const pybind11::bytes& name, std::shared_ptr<Listener> listener);
  void stop_listening(const Listener& listener); // also after close(), and in a forked child

  // --- network_experts.cpp
  // The number of copies. Waits up to `join_timeout` for a way into the network first.
  std::shared_ptr<Answer>
  declare(const std::vector<std::string>& uids, const std::vector<uint64_t>& schema_hashes,
          const std::vector<std::string>& addresses, int tcp_port, uint64_t boot_id, double period,
          double expiry, std::optional<uint64_t> grid_cells, double join_timeout, double timeout);
  std::shared_ptr<Answer> undeclare(double timeout); // None
  // [(ip, port, key, boot id) or None], one for each uid.
  std::shared_ptr<Answer> find_experts(const std::vector<std::string>& uids, double timeout);
  // The first k prefixes that are alive.
  std::shared_ptr<Answer> first_k_active(const std::vector<std::string>& prefixes, size_t k,
                                         double timeout);
  void watch(const std::string& prefix, const std::vector<int64_t>& grid);
  pybind11::tuple alive(const std::string& prefix, const std::vector<int64_t>& grid);
  uint64_t alive_version(const std::string& prefix, const std::vector<int64_t>& grid);
  size_t other_schemas(const std::string& prefix, const std::vector<int64_t>& grid);
  bool wait_alive(const std::string& prefix, const std::vector<int64_t>& grid, uint64_t version,
                  double timeout);
  void suspect(const pybind11::bytes& key, std::optional<uint64_t> boot_id, double duration);
  void forgive(const pybind11::bytes& key);

  // --- network_beam.cpp
  // (experts, replicas by flat id, int32 [rows, k] indices into experts as bytes, declared, other
  // schemas, unread) for float scores [rows, sum(grid)] at an address, copied before it returns.
  std::shared_ptr<Answer> find_best_experts(const std::string& prefix,
                                            const std::vector<int64_t>& grid, uintptr_t scores,
                                            size_t rows, size_t k, size_t beam, double timeout);

private:
  void check_running() const;
  std::shared_ptr<net::UdpDriver> driver();
  void post(net::UdpDriver::Command command);
  void run(const net::UdpDriver::Command& command);
  uint64_t next_seq(const dht::Node& node) {
    return last_seq_ = std::max(last_seq_ + 1, node.next_seq());
  }

  // Raises Overloaded if too many calls wait for theirs.
  template <class T>
  std::shared_ptr<AnswerOf<T>> open(const char* what, Duration allowed,
                                    typename AnswerOf<T>::Convert convert) {
    check_running();
    if (calls_->count >= Limits::kOpenCalls)
      raise_error({ErrorCode::kOverloaded,
                   std::string(what) + ": " + std::to_string(Limits::kOpenCalls) +
                       " calls of this network wait for answers already; wait for some of them"});
    return std::make_shared<AnswerOf<T>>(calls_, what, allowed, std::move(convert));
  }

  pid_t owner_;
  net::SystemClock clock_;
  crypto::PublicKey public_key_{};
  uint16_t port_ = 0;
  std::shared_ptr<OpenCalls> calls_ = std::make_shared<OpenCalls>();
  // Shared with callers in other threads that are inside a method while close() runs.
  std::shared_ptr<net::UdpDriver> driver_;
  WatchedGrids watched_;
  uint64_t last_seq_ = 0; // network thread only
};

} // namespace lah::bindings
