#include <pybind11/stl.h>

#include <numeric>

#include "bindings/network.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

// Searched in one go: the network thread has others to serve.
constexpr size_t kRowsAtOnce = 512;

using Parts = std::vector<dht::BeamResult>; // of consecutive rows

// The parts of one search, as they come in. Network thread only.
struct Gathered {
  Parts parts;
  size_t open;
};

py::tuple places(const dht::BeamResult& part, const std::vector<uint32_t>& servers) {
  py::tuple places(servers.size());
  for (size_t i = 0; i < servers.size(); ++i) {
    const dht::AliveMap::Server& server = part.servers[servers[i]];
    places[i] = py::make_tuple(server.endpoint.ip_text(), server.endpoint.port,
                               to_bytes(server.owner), server.boot_id);
  }
  return places;
}

py::tuple joined(const dht::Grid& grid, const Parts& parts) {
  std::map<uint64_t, std::pair<const dht::BeamResult*, const dht::BeamResult::Expert*>> chosen;
  for (const dht::BeamResult& part : parts)
    for (const dht::BeamResult::Expert& expert : part.experts)
      chosen.try_emplace(expert.flat_id, &part, &expert);
  std::map<uint64_t, int32_t> indices;
  py::list experts;
  py::dict replicas;
  for (const auto& [flat_id, found] : chosen) {
    const auto& [part, expert] = found;
    indices[flat_id] = static_cast<int32_t>(indices.size());
    const dht::AliveMap::Server& server = part->servers[expert->server];
    experts.append(py::make_tuple(flat_id, grid.uid(flat_id), server.endpoint.ip_text(),
                                  server.endpoint.port, to_bytes(server.owner), server.boot_id));
    if (!expert->replicas.empty())
      replicas[py::int_(flat_id)] = places(*part, expert->replicas);
  }
  std::vector<int32_t> index;
  size_t unread = 0;
  for (const dht::BeamResult& part : parts) {
    unread += part.unread;
    for (const int32_t own : part.chosen)
      index.push_back(own < 0 ? -1 : indices[part.experts[static_cast<size_t>(own)].flat_id]);
  }
  return py::make_tuple(
      py::tuple(experts), replicas,
      py::bytes(reinterpret_cast<const char*>(index.data()), index.size() * sizeof(int32_t)),
      parts.back().declared, parts.back().other_schemas, unread);
}

} // namespace

std::shared_ptr<Answer> Network::find_best_experts(const std::string& prefix,
                                                   const std::vector<int64_t>& size,
                                                   uintptr_t scores, size_t rows, size_t k,
                                                   size_t beam, double timeout) {
  const dht::Grid grid = value_or_raise(dht::Grid::make(prefix, size, Limits::kBeamCells));
  const size_t width = std::accumulate(grid.size.begin(), grid.size.end(), size_t{0});
  if (rows > Limits::kBeamScores / width)
    raise_error({ErrorCode::kInvalidArgument,
                 "scores: at most " + std::to_string(Limits::kBeamScores) + " are allowed"});
  const Duration allowed = seconds(timeout);
  auto answer = open<Parts>("find_best_experts", allowed,
                            [grid](Parts&& parts) { return joined(grid, parts); });
  const size_t count = std::max<size_t>(1, (rows + kRowsAtOnce - 1) / kRowsAtOnce);
  const auto gathered = std::make_shared<Gathered>(Gathered{Parts(count), count});
  const auto* first = reinterpret_cast<const float*>(scores);
  for (size_t part = 0; part < count; ++part) {
    const size_t begin = part * kRowsAtOnce;
    const size_t end = std::min(rows, begin + kRowsAtOnce);
    dht::BeamRequest request{grid, {}, end - begin, k, beam};
    request.scores.assign(first + begin * width, first + end * width);
    if (const auto error = dht::BeamQuery::check(request))
      raise_error(*error);
    post([=](auto& core, Time now, WallMs wall) {
      core.beam.find(now, wall, request, now + allowed, [=](dht::BeamResult result) {
        gathered->parts[part] = std::move(result);
        if (--gathered->open == 0)
          answer->set(std::move(gathered->parts));
      });
    });
  }
  return answer;
}

} // namespace lah::bindings
