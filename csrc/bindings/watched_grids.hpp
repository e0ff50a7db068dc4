#pragma once

#include <condition_variable>
#include <mutex>

#include "bindings/network_support.hpp"
#include "net/udp_driver.hpp"

namespace lah::bindings {

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

// The grids that Python watches. Guarded by the GIL.
class WatchedGrids {
public:
  using Size = std::vector<int64_t>;

  void watch(net::UdpDriver& driver, const std::string& prefix, const Size& size);
  // (version, experts, replicas): the same object until the map changes.
  pybind11::tuple alive(const std::string& prefix, const Size& size);
  // Null before the first answer.
  std::shared_ptr<const dht::AliveMap> map(const std::string& prefix, const Size& size);
  std::shared_ptr<WatchedGrid> grid(const std::string& prefix, const Size& size);
  void clear() { watched_.clear(); }

private:
  struct Watched {
    std::shared_ptr<WatchedGrid> grid;
    uint64_t python_version = 0;
    pybind11::object python_map = {}; // that version, for callers that ask again
  };
  Watched& find(const std::string& prefix, const Size& size);

  std::map<std::pair<std::string, Size>, Watched> watched_;
};

} // namespace lah::bindings
