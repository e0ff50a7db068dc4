// route_grid, plan and the gradient of routing: the CUDA kernels, emulated, beside those for the
// CPU.
#include "cuda_fixture.hpp"

#include <cmath>

namespace lah::ops {
namespace {

Grid random_grid(Random& random) {
  static const Grid kGrids[] = {
      grid_of({1}),       grid_of({2}),        grid_of({31}),         grid_of({32}),
      grid_of({33}),      grid_of({300}),      grid_of({1, 1}),       grid_of({2, 3}),
      grid_of({33, 9}),   grid_of({9, 33}),    grid_of({16, 16}),     grid_of({1, 40, 2}),
      grid_of({3, 4, 5}), grid_of({7, 1, 43}), grid_of({2, 3, 4, 5}), grid_of({5, 2, 1, 31})};
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

RouteOutput output_of(const RouteInput& in, int before) {
  RouteGridArgs args{};
  args.grid = in.grid;
  args.logits = in.logits.data();
  args.alive = in.alive_bits();
  args.tokens = in.tokens;
  args.k = in.k;
  args.beam = in.beam;
  args.capacity = in.capacity;
  args.align = in.align;
  return RouteOutput(args, in.with_lse, in.with_stats, before);
}

void choose_on_cpu(const RouteGridArgs& a) {
  route_on_cpu(a,
               [&](int64_t begin, int64_t end) { cpu::route_tokens(a, Scalar::f32, begin, end); });
}

TEST(CudaRouteGrid, SameChoicesAsOnCpu) {
  for_seeds(150, [](Random& random) {
    const RouteInput in(random);
    SCOPED_TRACE(testing::Message()
                 << in.grid.dims << " axes, " << in.grid.experts << " experts, " << in.tokens
                 << " tokens, k " << in.k << ", beam " << in.beam << ", dead " << in.some_dead);
    RouteOutput got = output_of(in, kBefore), want = output_of(in, kOtherBefore);
    choose_on_cpu(want.args);
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
    RouteOutput routed = output_of(in, kBefore);
    choose_on_cpu(routed.args);
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
