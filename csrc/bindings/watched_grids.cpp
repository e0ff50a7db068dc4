#include "bindings/watched_grids.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

// (version, experts, replicas by flat id)
py::tuple alive_tuple(const dht::Grid& grid, const dht::AliveMap& map) {
  std::vector<py::tuple> servers; // (ip, port, key, boot id), shared by the experts of a server
  for (const dht::AliveMap::Server& server : map.servers)
    servers.push_back(py::make_tuple(server.endpoint.ip_text(), server.endpoint.port,
                                     to_bytes(server.owner), server.boot_id));
  py::tuple experts(map.experts.size());
  py::dict replicas;
  for (size_t i = 0; i < map.experts.size(); ++i) {
    const dht::AliveMap::Expert& expert = map.experts[i];
    const py::tuple& server = servers[expert.server];
    experts[i] = py::make_tuple(expert.flat_id, grid.uid(expert.flat_id), server[0], server[1],
                                server[2], server[3]);
    if (expert.replicas.empty())
      continue;
    py::tuple others(expert.replicas.size());
    for (size_t j = 0; j < expert.replicas.size(); ++j)
      others[j] = servers[expert.replicas[j]];
    replicas[py::int_(expert.flat_id)] = others;
  }
  return py::make_tuple(map.version, experts, replicas);
}

} // namespace

void WatchedGrids::watch(net::UdpDriver& driver, const std::string& prefix, const Size& size) {
  if (watched_.contains({prefix, size}))
    return;
  dht::Grid grid = value_or_raise(dht::Grid::make(prefix, size));
  const auto watched = std::make_shared<WatchedGrid>(std::move(grid));
  watched_[{prefix, size}].grid = watched;
  driver.post([watched](auto& core, Time now, WallMs) {
    core.search.watch(now, watched->grid,
                      [watched](auto map) { watched->publish(std::move(map)); });
  });
}

WatchedGrids::Watched& WatchedGrids::find(const std::string& prefix, const Size& size) {
  const auto found = watched_.find({prefix, size});
  if (found == watched_.end())
    raise_error(
        {ErrorCode::kInvalidArgument, "prefix: '" + prefix + "' is not watched with this grid"});
  return found->second;
}

std::shared_ptr<WatchedGrid> WatchedGrids::grid(const std::string& prefix, const Size& size) {
  return find(prefix, size).grid;
}

std::shared_ptr<const dht::AliveMap> WatchedGrids::map(const std::string& prefix,
                                                       const Size& size) {
  return find(prefix, size).grid->map();
}

py::tuple WatchedGrids::alive(const std::string& prefix, const Size& size) {
  Watched& watched = find(prefix, size);
  const auto map = watched.grid->map();
  if (map == nullptr)
    return py::make_tuple(0, py::tuple(), py::dict());
  if (watched.python_version != map->version) {
    watched.python_map = alive_tuple(watched.grid->grid, *map);
    watched.python_version = map->version;
  }
  return watched.python_map;
}

} // namespace lah::bindings
