#include <pybind11/stl.h>

#include "bindings/declarations.hpp"
#include "bindings/network.hpp"

namespace py = pybind11;

namespace lah::bindings {

std::shared_ptr<Answer> Network::declare(const std::vector<std::string>& uids,
                                         const std::vector<uint64_t>& schema_hashes,
                                         const std::vector<std::string>& addresses, int tcp_port,
                                         uint64_t boot_id, double period, double expiry,
                                         std::optional<uint64_t> grid_cells, double join_timeout,
                                         double timeout) {
  const Duration joining = seconds(join_timeout);
  const Duration allowed = seconds(timeout);
  auto answer =
      open<size_t>("declare", joining + allowed, [](size_t copies) { return py::int_(copies); });
  post([=, served = served_from(uids, schema_hashes, addresses, tcp_port, boot_id, period, expiry,
                                grid_cells)](auto& core, Time now, WallMs wall) {
    core.ready.wait(
        now, wall, now + joining, [&core, served, answer, allowed](Time then, WallMs at, bool) {
          auto started = core.declarer.declare(then, at, served, then + allowed,
                                               [answer](size_t copies) { answer->set(copies); });
          if (!started)
            answer->fail(started.error());
        });
  });
  return answer;
}

std::shared_ptr<Answer> Network::undeclare(double timeout) {
  const Duration allowed = seconds(timeout);
  auto answer = open<size_t>("undeclare", allowed, [](size_t) { return py::none(); });
  post([=](auto& core, Time now, WallMs wall) {
    core.declarer.undeclare(now, wall, now + allowed,
                            [answer](size_t copies) { answer->set(copies); });
  });
  return answer;
}

std::shared_ptr<Answer> Network::find_experts(const std::vector<std::string>& uids,
                                              double timeout) {
  using Found = std::vector<std::optional<dht::ExpertSearch::Found>>;
  const Duration allowed = seconds(timeout);
  auto answer = open<Found>("find_experts", allowed, [](Found&& found) {
    py::list experts;
    for (const auto& expert : found)
      if (expert)
        experts.append(py::make_tuple(expert->endpoint.ip_text(), expert->endpoint.port,
                                      to_bytes(expert->owner), expert->boot_id));
      else
        experts.append(py::none());
    return experts;
  });
  post([parsed = parse_uids(uids, "uids"), answer, allowed](auto& core, Time now, WallMs wall) {
    core.search.find(now, wall, parsed, now + allowed,
                     [answer](Found found) { answer->set(std::move(found)); });
  });
  return answer;
}

std::shared_ptr<Answer> Network::first_k_active(const std::vector<std::string>& prefixes, size_t k,
                                                double timeout) {
  const Duration allowed = seconds(timeout);
  auto answer =
      open<std::vector<bool>>("first_k_active", allowed, [prefixes, k](std::vector<bool>&& active) {
        py::list first;
        for (size_t i = 0; i < prefixes.size() && first.size() < k; ++i)
          if (active[i])
            first.append(prefixes[i]);
        return first;
      });
  post([parsed = parse_uids(prefixes, "prefixes"), answer, allowed](auto& core, Time now,
                                                                    WallMs wall) {
    core.search.active(now, wall, parsed, now + allowed,
                       [answer](std::vector<bool> active) { answer->set(std::move(active)); });
  });
  return answer;
}

// --- alive maps
// ------------------------------------------------------------------------------------

void Network::watch(const std::string& prefix, const std::vector<int64_t>& grid) {
  watched_.watch(*driver(), prefix, grid);
}

py::tuple Network::alive(const std::string& prefix, const std::vector<int64_t>& grid) {
  check_running();
  return watched_.alive(prefix, grid);
}

uint64_t Network::alive_version(const std::string& prefix, const std::vector<int64_t>& grid) {
  check_running();
  const auto map = watched_.map(prefix, grid);
  return map == nullptr ? 0 : map->version;
}

size_t Network::other_schemas(const std::string& prefix, const std::vector<int64_t>& grid) {
  check_running();
  const auto map = watched_.map(prefix, grid);
  return map == nullptr ? 0 : map->other_schemas;
}

bool Network::wait_alive(const std::string& prefix, const std::vector<int64_t>& grid,
                         uint64_t version, double timeout) {
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

void Network::suspect(const py::bytes& key, std::optional<uint64_t> boot_id, double duration) {
  const Duration held = seconds(duration);
  run([peer = public_key_from(key), boot_id, held](auto& core, Time now, WallMs) {
    core.search.suspect(now, peer, boot_id, now + held);
  });
}

void Network::forgive(const py::bytes& key) {
  run([peer = public_key_from(key)](auto& core, Time now, WallMs) {
    core.search.forgive(now, peer);
  });
}

} // namespace lah::bindings
