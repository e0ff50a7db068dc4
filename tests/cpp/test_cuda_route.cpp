// route_grid, plan and the gradient of routing: the CUDA kernels, emulated, beside those for the
// CPU.
#include "cuda_fixture.hpp"

#include <cmath>

namespace lah::ops {
namespace {

Grid make_grid(std::initializer_list<int64_t> sizes) {
  Grid grid{};
  grid.experts = 1;
  for (const int64_t size : sizes) {
    grid.size[grid.dims++] = size;
    grid.logits += size;
    grid.experts *= size;
  }
  return grid;
}

Grid random_grid(Random& random) {
  static const Grid kGrids[] = {
      make_grid({1}),          make_grid({2}),        make_grid({31}),
      make_grid({32}),         make_grid({33}),       make_grid({300}),
      make_grid({1, 1}),       make_grid({2, 3}),     make_grid({33, 9}),
      make_grid({9, 33}),      make_grid({16, 16}),   make_grid({1, 40, 2}),
      make_grid({3, 4, 5}),    make_grid({7, 1, 43}), make_grid({2, 3, 4, 5}),
      make_grid({5, 2, 1, 31})};
  return one_of(random, kGrids);
}

struct RouteInput {
  Grid grid;
  int64_t tokens, k, beam, capacity, align;
  Guarded<float> logits;
  Guarded<int32_t> alive;
  bool some_dead, with_lse, with_stats;
  double special; // share of logits that are not ordinary numbers

  explicit RouteInput(Random& random)
      : grid(random_grid(random)), tokens(one_of(random, kCudaTokens)),
        k(one_of(random, kCudaChoices)), beam(random.any_of<int64_t>({0, 0, 1, 5})),
        capacity(random.any_of<int64_t>({0, 0, 1, 4})), align(random.any_of<int64_t>({1, 1, 8})),
        logits(random.normals<float>(tokens * grid.logits)), alive((grid.experts + 31) / 32),
        some_dead(random.chance(0.6)), with_lse(random.chance(0.7)),
        with_stats(with_lse && random.chance(0.7)), special(random.any_of({0.0, 0.0, 0.02, 0.5})) {
    fill_logits(random);
    const double share = random.any_of({0.0, 0.05, 0.5, 0.95});
    for (int32_t& word : alive) {
      uint32_t bits = 0;
      for (int bit = 0; bit < 32; ++bit)
        bits |= uint32_t{random.chance(share)} << bit;
      word = static_cast<int32_t>(bits); // also beyond the last expert
    }
  }

  const int32_t* alive_bits() const { return some_dead ? alive.data() : nullptr; }

private:
  void fill_logits(Random& random) {
    const bool ties = random.chance(0.5);
    for (float& x : logits) {
      if (ties)
        x = std::round(x);
      if (random.chance(special))
        x = random.any_of({kNan, kInf, -kInf, 3e38f, -3e38f, 1e-40f, -0.0f});
    }
  }
};

struct RouteOutput {
  Guarded<int32_t> index, rank, offset, count;
  Guarded<float> score, lse, stats;
  RouteGridArgs args;
  Guarded<int32_t> tile_count;
  Guarded<float> tile_probability;

  RouteOutput(const RouteInput& in, int before)
      : index(in.tokens * in.k, before), rank(in.tokens * in.k, before),
        offset(in.grid.experts + 1, before), count(in.grid.experts, before),
        score(in.tokens * in.k, before), lse(in.with_lse ? in.tokens : 0, before),
        stats(in.with_stats ? 2 * in.grid.experts : 0, before), args{.grid = in.grid,
                                                                     .logits = in.logits.data(),
                                                                     .alive = in.alive_bits(),
                                                                     .tokens = in.tokens,
                                                                     .k = in.k,
                                                                     .beam = in.beam,
                                                                     .capacity = in.capacity,
                                                                     .align = in.align,
                                                                     .index = index.data(),
                                                                     .rank = rank.data(),
                                                                     .offset = offset.data(),
                                                                     .count = count.data(),
                                                                     .score = score.data(),
                                                                     .lse = lse.data(),
                                                                     .stats = stats.data(),
                                                                     .tile_count = nullptr,
                                                                     .tile_probability = nullptr},
        tile_count(rank_tiles(in.tokens * in.k, in.grid.experts) * in.grid.experts, before),
        tile_probability(in.with_stats ? stats_tiles(in.tokens) * in.grid.experts : 0, before) {
    args.tile_count = tile_count.data();
    args.tile_probability = tile_probability.data();
  }
};

void route_on_cpu(const RouteGridArgs& a) {
  for (int64_t i = 0; i < stats_tiles(a.tokens); ++i)
    cpu::route_tokens(a, Scalar::f32, i * stats_tile(a.tokens),
                      std::min((i + 1) * stats_tile(a.tokens), a.tokens));
  cpu::route_plan(a, Scalar::f32);
}

TEST(CudaRouteGrid, SameChoicesAsOnCpu) {
  for_seeds(150, [](Random& random) {
    const RouteInput in(random);
    SCOPED_TRACE(testing::Message()
                 << in.grid.dims << " axes, " << in.grid.experts << " experts, " << in.tokens
                 << " tokens, k " << in.k << ", beam " << in.beam << ", dead " << in.some_dead);
    RouteOutput got(in, kBefore), want(in, kOtherBefore);
    route_on_cpu(want.args);
    EXPECT_STREQ(cuda::route_grid(got.args, nullptr), nullptr);
    expect_same("index", got.index, want.index);
    expect_same("score", got.score, want.score);
    expect_same("rank", got.rank, want.rank);
    expect_same("offset", got.offset, want.offset);
    expect_same("count", got.count, want.count);
    expect_near("lse", got.lse, want.lse, 8);
    expect_near("stats", got.stats, want.stats, 1);
  });
}

// ---- plan ---------------------------------------------------------------------------------------

struct PlanOutput {
  Guarded<int32_t> rank, offset, count, tile_count;

  PlanOutput(int64_t assignments, int64_t experts, int before)
      : rank(assignments, before), offset(experts + 1, before), count(experts, before),
        tile_count(rank_tiles(assignments, experts) * experts, before) {}
};

TEST(CudaPlan, SameBitsAsOnCpu) {
  for_seeds(60, [](Random& random) {
    const auto assignments = random.any_of<int64_t>({0, 1, 31, 32, 33, 255, 256, 257, 1030, 5000});
    const auto experts = random.any_of<int64_t>({1, 2, 31, 32, 33, 300, 1023, 1024, 1025, 2100});
    const int64_t used = random.any_of<int64_t>({1, 2, experts}); // few: many in a warp collide
    Guarded<int32_t> index(assignments);
    for (int32_t& e : index)
      e = random.chance(0.1) ? random.garbage(experts)
                             : static_cast<int32_t>(std::min(random.below(used), experts - 1));
    PlanOutput got(assignments, experts, kBefore), want(assignments, experts, kOtherBefore);
    PlanArgs args{.index = index.data(),
                  .assignments = assignments,
                  .experts = experts,
                  .capacity = random.any_of<int64_t>({0, 0, 1, 40}),
                  .align = random.any_of<int64_t>({1, 1, 8, 128}),
                  .rank = want.rank.data(),
                  .offset = want.offset.data(),
                  .count = want.count.data(),
                  .tile_count = nullptr};
    cpu::plan(args);
    args.rank = got.rank.data();
    args.offset = got.offset.data();
    args.count = got.count.data();
    args.tile_count = got.tile_count.data();
    EXPECT_STREQ(cuda::plan(args, nullptr), nullptr);
    expect_same("rank", got.rank, want.rank);
    expect_same("offset", got.offset, want.offset);
    expect_same("count", got.count, want.count);
  });
}

// ---- route_backward -----------------------------------------------------------------------------

TEST(CudaRouteBackward, NearCpu) {
  for_seeds(100, [](Random& random) {
    const RouteInput in(random);
    RouteOutput routed(in, kBefore);
    route_on_cpu(routed.args);
    for (int32_t& e : routed.index)
      if (random.chance(0.05))
        e = random.garbage(in.grid.experts); // of a router that is not ours: void if out of range
    const auto grad_score = random.normals<float>(in.tokens * in.k),
               grad_lse = random.normals<float>(in.tokens),
               grad_stats = random.normals<float>(2 * in.grid.experts);
    const bool with_score = random.chance(0.8);
    Guarded<float> got(in.logits.size()), want(in.logits.size(), kOtherBefore);
    RouteBackwardArgs args{.grid = in.grid,
                           .grad_score = with_score ? grad_score.data() : nullptr,
                           .grad_lse =
                               in.with_lse && random.chance(0.8) ? grad_lse.data() : nullptr,
                           .grad_stats = in.with_stats ? grad_stats.data() : nullptr,
                           .logits = in.logits.data(),
                           .index = routed.index.data(),
                           .alive = in.alive_bits(),
                           .lse = routed.lse.data(),
                           .tokens = in.tokens,
                           .choices = in.k,
                           .grad_logits = want.data()};
    cpu::route_backward(args, Scalar::f32, 0, in.tokens);
    args.grad_logits = got.data();
    EXPECT_STREQ(cuda::route_backward(args, nullptr), nullptr);
    // Beside a logit of 3e38, many experts may have a probability of 1.
    const auto terms = in.k + (in.special > 0 ? in.grid.experts : 1);
    expect_near("grad_logits", got, want, 8.0 * static_cast<double>(terms));
  });
}

} // namespace
} // namespace lah::ops
