// route and the gradient through sigmoids: the emulated CUDA kernels beside those for the CPU, and
// both inside their buffers.
#include "cuda_fixture.hpp"

namespace lah::ops {
namespace {

struct AxisInput {
  int64_t groups, experts, tokens, k;
  Score score;
  Guarded<float> logits, bias;
  Guarded<int32_t> alive;
  bool with_bias, some_dead, with_stats;

  explicit AxisInput(Random& random)
      : groups(random.any_of<int64_t>({1, 1, 2, 5, 32})),
        experts(groups * random.any_of<int64_t>({1, 2, 9, 33})),
        tokens(one_of(random, kCudaTokens)), k(one_of(random, kCudaChoices)),
        score(random.any_of({Score::logit, Score::sigmoid})),
        logits(random.normals<float>(tokens * experts)), bias(random.normals<float>(experts)),
        alive((experts + 31) / 32), with_bias(random.chance(0.5)), some_dead(random.chance(0.6)),
        with_stats(random.chance(0.7)) {
    const bool ties = score == Score::logit && random.chance(0.5);
    const double special = random.any_of({0.0, 0.02, 0.5});
    for (float& x : logits) {
      if (ties)
        x = std::round(x);
      if (random.chance(special))
        x = random.any_of({kNan, kInf, -kInf, -3e38f, -0.0f});
    }
    const double share = random.any_of({0.05, 0.5, 0.95});
    for (int32_t& word : alive) {
      uint32_t bits = 0;
      for (int bit = 0; bit < 32; ++bit)
        bits |= uint32_t{random.chance(share)} << bit;
      word = static_cast<int32_t>(bits);
    }
  }
};

struct AxisOutput {
  RouteOutput route;
  Guarded<float> affinity;

  AxisOutput(const AxisInput& in, int before)
      : route(options(in), true, in.with_stats, before),
        affinity(in.with_stats && in.score == Score::sigmoid ? in.tokens : 0, before) {}

  RouteArgs args(const AxisInput& in, int64_t top_groups) {
    return {.axis = route.args,
            .bias = in.with_bias ? in.bias.data() : nullptr,
            .score = in.score,
            .groups = in.groups,
            .top_groups = top_groups,
            .affinity = affinity.data()};
  }

private:
  static RouteGridArgs options(const AxisInput& in) {
    RouteGridArgs args{};
    args.grid = grid_of({in.experts});
    args.logits = in.logits.data();
    args.alive = in.some_dead ? in.alive.data() : nullptr;
    args.tokens = in.tokens;
    args.k = in.k;
    args.align = 1;
    return args;
  }
};

void choose_on_cpu(const RouteArgs& a) {
  route_on_cpu(a.axis, [&](int64_t begin, int64_t end) {
    cpu::route_axis_tokens(a, Scalar::f32, begin, end);
  });
}

// Two ways to compute a sigmoid differ in the last bit, and so may the choice among near keys: of
// continuous keys that is rare, and here it does not happen.
TEST(CudaRoute, SameChoicesAsOnCpu) {
  for_seeds(60, [](Random& random) {
    const AxisInput in(random);
    const int64_t top_groups = 1 + random.below(in.groups);
    SCOPED_TRACE(testing::Message()
                 << in.experts << " experts in " << in.groups << " groups, top " << top_groups
                 << ", tokens " << in.tokens << ", k " << in.k << ", sigmoid "
                 << (in.score == Score::sigmoid) << ", bias " << in.with_bias);
    AxisOutput got(in, kBefore), want(in, kOtherBefore);
    choose_on_cpu(want.args(in, top_groups));
    EXPECT_STREQ(cuda::route(got.args(in, top_groups), nullptr), nullptr);
    expect_same("index", got.route.index, want.route.index);
    if (in.score == Score::logit)
      expect_same("score", got.route.score, want.route.score);
    expect_near("score", got.route.score, want.route.score, 1);
    expect_same("rank", got.route.rank, want.route.rank);
    expect_same("offset", got.route.offset, want.route.offset);
    expect_same("count", got.route.count, want.route.count);
    expect_near("lse", got.route.lse, want.route.lse, 8);
    expect_near("stats", got.route.stats, want.route.stats, 1);
  });
}

TEST(CudaRoute, GradientThroughSigmoidsNearCpu) {
  for_seeds(100, [](Random& random) {
    AxisInput in(random);
    in.score = Score::sigmoid;
    AxisOutput routed(in, kBefore);
    const RouteArgs route = routed.args(in, in.groups);
    choose_on_cpu(route);
    for (int32_t& e : routed.route.index)
      if (random.chance(0.05))
        e = random.garbage(in.experts);
    const auto grad_score = random.normals<float>(in.tokens * in.k),
               grad_lse = random.normals<float>(in.tokens),
               grad_stats = random.normals<float>(2 * in.experts);
    Guarded<float> got(in.logits.size()), want(in.logits.size(), kOtherBefore);
    RouteBackwardArgs args{.grid = route.axis.grid,
                           .grad_score = random.chance(0.8) ? grad_score.data() : nullptr,
                           .grad_lse = random.chance(0.8) ? grad_lse.data() : nullptr,
                           .grad_stats = in.with_stats ? grad_stats.data() : nullptr,
                           .logits = in.logits.data(),
                           .index = routed.route.index.data(),
                           .alive = route.axis.alive,
                           .lse = routed.route.lse.data(),
                           .tokens = in.tokens,
                           .choices = in.k,
                           .grad_logits = want.data()};
    cpu::route_axis_backward(args, Scalar::f32, 0, in.tokens);
    args.grad_logits = got.data();
    EXPECT_STREQ(cuda::route_axis_backward(args, nullptr), nullptr);
    expect_near("grad_logits", got, want, 16);
  });
}

} // namespace
} // namespace lah::ops
