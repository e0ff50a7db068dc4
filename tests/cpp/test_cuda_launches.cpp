// What a local layer enqueues besides its matrix products: a launch for each op, and nothing else.
#include "cuda_fixture.hpp"

namespace lah::ops {
namespace {

constexpr int64_t kTokens = 40, kChoices = 2, kExperts = 6, kHidden = 16, kInner = 8,
                  kRows = kTokens * kChoices;

// How much `call` enqueues, which must succeed.
template <class Call> uint64_t enqueued_by(const Call& call) {
  const uint64_t before = cuda_emulation::enqueued;
  EXPECT_STREQ(call(), nullptr);
  return cuda_emulation::enqueued - before;
}

struct Layer {
  Random random{7};
  Guarded<float> logits = random.normals<float>(kTokens * kExperts),
                 x = random.normals<float>(kTokens * kHidden),
                 grad = random.normals<float>(kTokens * kHidden),
                 gate_up = random.normals<float>(kRows * 2 * kInner);
  RouteOutput route{options(), true, true, kBefore};
  Guarded<int32_t> source{kRows};
  Guarded<float> rows{kRows * kHidden}, gated{kRows * kInner}, out{kTokens * kHidden},
      weight{kRows}, grad_rows{kRows * kHidden}, grad_score{kRows},
      grad_gate_up{kRows * 2 * kInner}, grad_x{kTokens * kHidden}, grad_logits{kTokens * kExperts};

  RouteGridArgs options() const {
    RouteGridArgs args{};
    args.grid = grid_of({kExperts});
    args.logits = logits.data();
    args.tokens = kTokens;
    args.k = kChoices;
    args.align = 1;
    return args;
  }
  Plan plan() const {
    return {route.index.data(),
            route.rank.data(),
            route.offset.data(),
            nullptr,
            kTokens,
            kChoices,
            kExperts,
            kRows};
  }
};

TEST(CudaLaunches, ForwardAndBackwardOfALayerAreFourEach) {
  Layer a;
  EXPECT_EQ(enqueued_by([&] { return cuda::route_grid(a.route.args, nullptr); }), 1u);
  const RouteArgs axis{a.route.args, nullptr, Score::logit, 1, 1, nullptr};
  EXPECT_EQ(enqueued_by([&] { return cuda::route(axis, nullptr); }), 1u);
  EXPECT_EQ(enqueued_by([&] {
              const auto bytes = kHidden * static_cast<int64_t>(sizeof(float));
              return cuda::dispatch({a.plan(), a.x.data(), bytes, a.rows.data(), a.source.data()},
                                    nullptr);
            }),
            1u);
  EXPECT_EQ(enqueued_by([&] {
              return cuda::swiglu({a.gate_up.data(), nullptr, kRows, kInner, a.gated.data()},
                                  Scalar::f32, nullptr);
            }),
            1u);
  EXPECT_EQ(enqueued_by([&] {
              return cuda::combine({a.plan(), a.rows.data(), a.route.score.data(), nullptr, kHidden,
                                    Normalize::softmax, a.out.data(), a.weight.data()},
                                   Scalar::f32, nullptr);
            }),
            1u);
  EXPECT_EQ(enqueued_by([&] {
              return cuda::combine_backward({a.plan(), a.grad.data(), a.rows.data(),
                                             a.route.score.data(), a.weight.data(), kHidden,
                                             Normalize::softmax, a.grad_rows.data(),
                                             a.grad_score.data(), a.source.data()},
                                            Scalar::f32, nullptr);
            }),
            1u);
  EXPECT_EQ(enqueued_by([&] {
              return cuda::swiglu_backward({a.gated.data(), a.gate_up.data(), nullptr, kRows,
                                            kInner, a.grad_gate_up.data(), nullptr},
                                           Scalar::f32, nullptr);
            }),
            1u);
  EXPECT_EQ(enqueued_by([&] { // dispatch_backward
              return cuda::combine({a.plan(), a.grad_rows.data(), nullptr, nullptr, kHidden,
                                    Normalize::ones, a.grad_x.data(), nullptr},
                                   Scalar::f32, nullptr);
            }),
            1u);
  EXPECT_EQ(enqueued_by([&] {
              return cuda::route_backward({.grid = a.route.args.grid,
                                           .grad_score = a.grad_score.data(),
                                           .grad_lse = a.route.lse.data(),
                                           .grad_stats = a.route.stats.data(),
                                           .logits = a.logits.data(),
                                           .index = a.route.index.data(),
                                           .alive = nullptr,
                                           .lse = a.route.lse.data(),
                                           .tokens = kTokens,
                                           .choices = kChoices,
                                           .grad_logits = a.grad_logits.data()},
                                          nullptr);
            }),
            1u);
}

} // namespace
} // namespace lah::ops
