// Beam search in simulated networks: round trips, loss, servers that come and go.
#include <gtest/gtest.h>

#include <cmath>

#include "dht/beam_search.hpp"
#include "dht/declarer.hpp"
#include "dht/expert_search.hpp"
#include "sim_swarm.hpp"

namespace lah::dht {
namespace {

using sim::CipherKind;
using sim::Faults;
using sim::VirtualNetwork;

struct Swarm {
  Swarm(const Faults& faults, std::vector<int64_t> size)
      : net(77, faults, CipherKind::kHash), size(std::move(size)) {}

  // Each node serves a block of the grid: `count` steps along the last axis, from `first` on.
  void serve(size_t node, Coordinates first, uint32_t count) {
    Declarer::Served served;
    std::vector<uint64_t>& cells = alive[node];
    cells.clear();
    for (uint32_t i = 0; i < count; ++i, ++first.back()) {
      served.experts.push_back({{"ffn", first}, 1});
      uint64_t flat = 0;
      for (size_t axis = 0; axis < size.size(); ++axis)
        flat = flat * static_cast<uint64_t>(size[axis]) + first[axis];
      cells.push_back(flat);
    }
    served.addresses = {net.endpoint(node)};
    served.tcp_port = static_cast<uint16_t>(8000 + node);
    served.boot_id = ++boots;
    served.grid_cells = Grid::make("ffn", size, Limits::kBeamCells)->experts();
    if (!declarers.contains(node))
      declarers[node] = std::make_unique<Declarer>(net.node(node));
    std::optional<size_t> copies;
    EXPECT_TRUE(declarers[node]->declare(net.now(), net.node(node).wall(), served,
                                         net.now() + 10 * kSecond,
                                         [&](size_t fewest) { copies = fewest; }));
    net.collect(node);
    EXPECT_TRUE(net.run_until(net.now() + 12 * kSecond, [&] { return copies.has_value(); }));
    EXPECT_GE(copies.value_or(0), 4U);
  }

  void trainer_at(size_t node) {
    trainer = node;
    if (beam != nullptr) { // what it reads ahead may be on its way
      former.push_back(std::move(beam));
      former.push_back(std::move(search));
    }
    search = std::make_unique<ExpertSearch>(net.node(node));
    beam = std::make_unique<BeamSearch>(net.node(node), [this](const auto& owner, uint64_t boot) {
      return search->is_suspect(owner, boot);
    });
  }

  BeamRequest random_request(size_t rows, size_t k, uint64_t seed) const {
    BeamRequest request{*Grid::make("ffn", size, Limits::kBeamCells), {}, rows, k, 4096};
    size_t width = 0;
    for (const int64_t axis : size)
      width += static_cast<size_t>(axis);
    SeededRng rng(seed);
    for (size_t i = 0; i < rows * width; ++i)
      request.scores.push_back(static_cast<float>(rng.below(1'000'000)) * 1e-6F);
    return request;
  }

  BeamResult find(const BeamRequest& request, Duration limit = 20 * kSecond) {
    std::optional<BeamResult> found;
    EXPECT_FALSE(beam->find(net.now(), net.node(trainer).wall(), request, net.now() + limit,
                            [&](BeamResult result) { found = std::move(result); }));
    net.collect(trainer);
    EXPECT_TRUE(net.run_until(net.now() + limit + kSecond, [&] { return found.has_value(); }));
    return std::move(*found);
  }

  // The k best of the cells served by nodes that are up, for one row.
  std::vector<uint64_t> expected(const BeamRequest& request, size_t row) const {
    const float* scores = request.scores.data() + row * request.scores.size() / request.rows;
    std::set<std::pair<float, uint64_t>> order;
    for (const auto& [node, cells] : alive)
      for (const uint64_t flat : net.is_up(node) ? cells : std::vector<uint64_t>{}) {
        const Coordinates coordinates = request.grid.coordinates(flat);
        float score = 0;
        size_t begin = 0;
        for (size_t axis = 0; axis < size.size(); ++axis) {
          score = axis == 0 ? scores[coordinates[0]] : score + scores[begin + coordinates[axis]];
          begin += static_cast<size_t>(size[axis]);
        }
        order.insert({-score, flat});
      }
    std::vector<uint64_t> best;
    for (auto it = order.begin(); it != order.end() && best.size() < request.k; ++it)
      best.push_back(it->second);
    return best;
  }

  void expect_exact(const BeamRequest& request, const BeamResult& result) const {
    EXPECT_EQ(result.unread, 0U);
    for (size_t row = 0; row < request.rows; ++row) {
      std::vector<uint64_t> got;
      for (size_t i = row * request.k; i < (row + 1) * request.k; ++i)
        if (result.chosen[i] >= 0)
          got.push_back(result.experts.at(static_cast<size_t>(result.chosen[i])).flat_id);
      EXPECT_EQ(got, expected(request, row)) << "row " << row;
    }
  }

  VirtualNetwork net;
  std::vector<int64_t> size;
  std::map<size_t, std::vector<uint64_t>> alive; // cells by node
  std::map<size_t, std::unique_ptr<Declarer>> declarers;
  std::unique_ptr<ExpertSearch> search;
  std::unique_ptr<BeamSearch> beam;
  std::vector<std::unique_ptr<NodeTask>> former; // trainers
  size_t trainer = 0;
  uint64_t boots = 0;
};

constexpr Duration kRtt = 100 * kMillisecond;

// Twelve servers of a 3-D or 2-D grid in a settled network of 300 nodes, and trainers that know
// nothing yet: the round trips of each one's first search, on average. The next one costs nothing.
double mean_cold_round_trips(const std::vector<int64_t>& size) {
  constexpr size_t kNodes = 300;
  constexpr size_t kTrainers = 10;
  Swarm swarm(Faults::constant_rtt(kRtt), size);
  for (size_t i = 0; i < kNodes; ++i)
    swarm.net.add({.seeds = i == 0 ? std::vector<size_t>{} : std::vector<size_t>{0}});
  swarm.net.settle();
  swarm.net.run_for(5 * kSecond);
  for (uint32_t node = 1; node <= 12; ++node) {
    Coordinates first(size.size(), 0);
    first[0] = 23 * node % static_cast<uint32_t>(size[0]);
    if (size.size() == 3)
      first[1] = 17 * node % static_cast<uint32_t>(size[1]);
    swarm.serve(node, first, static_cast<uint32_t>(size.back()) / 2);
  }
  Duration took = 0;
  for (size_t trainer = kNodes - kTrainers; trainer < kNodes; ++trainer) {
    swarm.trainer_at(trainer);
    swarm.net.acquaint(trainer);
    const BeamRequest request = swarm.random_request(16, 4, trainer);
    const Time began = swarm.net.now();
    swarm.expect_exact(request, swarm.find(request));
    took += swarm.net.now() - began;

    const uint64_t sent = swarm.net.node(trainer).status().packets_out;
    bool found = false;
    EXPECT_FALSE(swarm.beam->find(swarm.net.now(), swarm.net.node(trainer).wall(), request, kNever,
                                  [&](const BeamResult& result) {
                                    swarm.expect_exact(request, result);
                                    found = true;
                                  }));
    EXPECT_TRUE(found); // at once
    swarm.net.collect(trainer);
    EXPECT_EQ(swarm.net.node(trainer).status().packets_out, sent);
  }
  const double mean = static_cast<double>(took) / static_cast<double>(kRtt * kTrainers);
  testing::Test::RecordProperty("round_trips", std::to_string(mean));
  return mean;
}

TEST(SimBeam, TwoAxesTakeTwoLookupsColdAndNoPacketWarm) {
  EXPECT_LE(mean_cold_round_trips({300, 300}), 2 * 1.6);
}

TEST(SimBeam, ThreeAxesTakeThreeLookupsColdAndNoPacketWarm) {
  EXPECT_LE(mean_cold_round_trips({64, 64, 64}), 3 * 1.6);
}

TEST(SimBeam, ExactThroughLossAndChurn) {
  Swarm swarm({.loss = 0.1, .duplicate = 0.01}, {400, 400});
  sim::grow(swarm.net, 40, 10 * kSecond);
  swarm.trainer_at(39);
  for (uint32_t node = 1; node <= 10; ++node)
    swarm.serve(node, {31 * node, 7 * node}, 30);
  const BeamRequest request = swarm.random_request(4, 4, 9);
  const BeamResult before = swarm.find(request);
  swarm.expect_exact(request, before);
  ASSERT_EQ(before.declared, 300U);

  // A server dies and one comes; the trainer goes on asking, from what is kept fresh for it.
  swarm.net.set_up(3, false);
  swarm.serve(11, {5, 5}, 20);
  const Time until = swarm.net.now() + 62 * kSecond;
  while (swarm.net.now() < until) {
    swarm.net.run_for(2 * kSecond);
    EXPECT_EQ(swarm.find(request).unread, 0U);
  }
  swarm.expect_exact(request, swarm.find(request));
  swarm.serve(4, {200, 0}, 10); // another part of the grid, the old one taken back
  swarm.net.run_for(25 * kSecond);
  swarm.find(request);
  swarm.net.run_for(5 * kSecond);
  swarm.expect_exact(request, swarm.find(request));
}

TEST(SimBeam, SuspectsAreLeftOutAtOnceAndComeBack) {
  Swarm swarm({}, {400, 400});
  sim::grow(swarm.net, 12, 5 * kSecond);
  swarm.trainer_at(11);
  swarm.serve(1, {3, 3}, 4);
  swarm.serve(2, {300, 3}, 4);
  const BeamRequest request = swarm.random_request(1, 8, 1);
  EXPECT_EQ(swarm.find(request).experts.size(), 8U);
  const PublicKey& owner = swarm.net.identity(1).public_key();
  swarm.search->suspect(swarm.net.now(), owner, std::nullopt, kNever);
  const BeamResult without = swarm.find(request);
  EXPECT_EQ(without.experts.size(), 4U);
  EXPECT_EQ(without.servers.at(0).owner, swarm.net.identity(2).public_key());
  EXPECT_EQ(without.servers.at(0).endpoint.port, 8002);
  swarm.search->forgive(swarm.net.now(), owner);
  EXPECT_EQ(swarm.find(request).experts.size(), 8U);
}

TEST(SimBeam, WithdrawnExpertsAreGoneAtTheNextReading) {
  Swarm swarm({}, {400, 400});
  sim::grow(swarm.net, 12, 5 * kSecond);
  swarm.trainer_at(11);
  swarm.serve(1, {3, 3}, 4);
  bool done = false;
  swarm.declarers[1]->undeclare(swarm.net.now(), swarm.net.node(1).wall(), kNever,
                                [&](size_t) { done = true; });
  swarm.net.collect(1);
  ASSERT_TRUE(swarm.net.run_until(swarm.net.now() + 10 * kSecond, [&] { return done; }));
  const BeamResult none = swarm.find(swarm.random_request(2, 2, 1));
  EXPECT_TRUE(none.experts.empty());
  EXPECT_EQ(none.unread, 0U);
}

TEST(SimBeam, ADeadNetworkEndsAtTheDeadlineWithWhatIsKnown) {
  Swarm swarm({}, {400, 400});
  sim::grow(swarm.net, 12, 5 * kSecond);
  swarm.trainer_at(swarm.net.add({.seeds = {0}, .client_mode = true})); // holds no records
  swarm.net.run_for(5 * kSecond);
  swarm.serve(1, {3, 3}, 4);
  BeamRequest request = swarm.random_request(1, 2, 1);
  EXPECT_EQ(swarm.find(request).unread, 0U);
  swarm.net.run_for(61 * kSecond); // forgotten
  swarm.net.set_partition([](size_t, size_t) { return true; });
  const Time began = swarm.net.now();
  const BeamResult result = swarm.find(request, 2 * kSecond);
  EXPECT_LE(swarm.net.now() - began, 2 * kSecond + kMillisecond);
  EXPECT_GT(result.unread, 0U);
  EXPECT_TRUE(result.experts.empty());
}

TEST(SimBeam, AClosingNodeEndsItsSearches) {
  Swarm swarm({}, {400, 400});
  sim::grow(swarm.net, 12, 5 * kSecond);
  swarm.trainer_at(11);
  bool ended = false;
  EXPECT_FALSE(swarm.beam->find(swarm.net.now(), swarm.net.node(11).wall(),
                                swarm.random_request(1, 2, 1), kNever,
                                [&](const BeamResult& result) { ended = result.unread > 0; }));
  swarm.net.node(11).abandon();
  EXPECT_TRUE(ended);
}

} // namespace
} // namespace lah::dht
