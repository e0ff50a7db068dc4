// dispatch, combine and their gradients: the CUDA kernels, emulated, beside those for the CPU.
#include "cuda_fixture.hpp"

#include <cmath>

namespace lah::ops {
namespace {

PlanCase random_plan(Random& random) {
  const auto tokens = one_of(random, kCudaTokens), choices = one_of(random, kCudaChoices),
             experts = one_of(random, kCudaExperts);
  return make_plan(random, tokens, choices, experts, random.any_of<int64_t>({1, 1, 8}),
                   random.any_of<int64_t>({0, 0, 3}), random.chance(0.5));
}

// ---- dispatch -----------------------------------------------------------------------------------

struct DispatchInput {
  const PlanCase& plan;
  int64_t row_bytes;
  Shifted<uint8_t> x;

  // Rows of any dtype, from pointers that are aligned to its elements alone.
  DispatchInput(Random& random, const PlanCase& plan_, int64_t element)
      : plan(plan_), row_bytes(one_of(random, kCudaWidths) * element),
        x(plan.tokens * row_bytes, random.below(3) * element) {
    for (uint8_t& byte : x)
      byte = static_cast<uint8_t>(random.engine() | 1u); // never the zero of an unowned row
  }
};

TEST(CudaDispatch, SameBitsAsOnCpu) {
  for_seeds(150, [](Random& random) {
    PlanCase plan = random_plan(random);
    plan.masked = false; // what is sent is known not to be missing
    const auto element = random.any_of<int64_t>({1, 2, 4, 8});
    const DispatchInput in(random, plan, element);
    const int64_t bytes = plan.rows * in.row_bytes;
    Shifted<uint8_t> got(bytes, random.below(2) * element), want(bytes, 0, kOtherBefore);
    Guarded<int32_t> got_source(plan.rows), want_source(plan.rows, 0xff);
    DispatchArgs args{plan.plan(), in.x.data(), in.row_bytes, want.data(), want_source.data()};
    cpu::dispatch(args, 0, plan.tokens);
    cpu::clear_unowned(want.data(), want_source.data(), in.row_bytes, 0, plan.rows);
    args.rows = got.data();
    args.source = got_source.data();
    EXPECT_STREQ(cuda::dispatch(args, nullptr), nullptr);
    expect_same("source", got_source, want_source);
    expect_same("rows", got, want);
  });
}

// What such a plan gives is not specified; the guards stand around all that it may touch.
TEST(CudaDispatch, BrokenPlansTouchNothingOutside) {
  for_seeds(60, [](Random& random) {
    const PlanCase plan = make_broken_plan(random, 33, one_of(random, kCudaChoices),
                                           one_of(random, kCudaExperts), false);
    const DispatchInput in(random, plan, 1);
    Guarded<uint8_t> rows(plan.rows * in.row_bytes);
    Guarded<int32_t> source(plan.rows);
    const DispatchArgs args{plan.plan(), in.x.data(), in.row_bytes, rows.data(), source.data()};
    EXPECT_STREQ(cuda::dispatch(args, nullptr), nullptr);
  });
}

// ---- combine ------------------------------------------------------------------------------------

template <class scalar> struct CudaCombine : testing::Test {};
TYPED_TEST_SUITE(CudaCombine, CudaRowTypes);

template <class scalar> struct CombineInput {
  const PlanCase& plan;
  int64_t hidden;
  Normalize normalize;
  Shifted<scalar> rows, residual, grad;
  Guarded<float> score; // Normalize::sum divides by their sum: not near zero
  bool added;

  CombineInput(Random& random, const PlanCase& plan_, std::initializer_list<Normalize> modes)
      : plan(plan_), hidden(one_of(random, kCudaWidths)), normalize(random.any_of(modes)),
        rows(shifted_normals<scalar>(random, plan.rows * hidden, random.below(2))),
        residual(shifted_normals<scalar>(random, plan.tokens * hidden, random.below(2))),
        grad(shifted_normals<scalar>(random, plan.tokens * hidden, random.below(2))),
        score(plan.index.size()), added(random.chance(0.5)) {
    for (float& s : score)
      s = static_cast<float>(0.5 + std::abs(random.normal()));
    const std::vector<int64_t> owner = plan.owners();
    for (int64_t row = 0; row < plan.rows; ++row) // a row that is nobody's, or missing, is not read
      if (owner[static_cast<size_t>(row)] < 0)
        std::fill_n(rows.begin() + row * hidden, hidden, narrow<scalar>(kNan));
  }

  CombineArgs args(Shifted<scalar>& out, Guarded<float>& weight) const {
    const bool ones = normalize == Normalize::ones;
    return {.plan = plan.plan(),
            .rows = rows.data(),
            .score = ones ? nullptr : score.data(),
            .residual = added ? residual.data() : nullptr,
            .hidden = hidden,
            .normalize = normalize,
            .out = out.data(),
            .weight = ones ? nullptr : weight.data()};
  }
  double terms() const { return 8.0 * static_cast<double>(plan.choices + 1); }
};

template <class scalar> void check_combine(Random& random, const PlanCase& plan) {
  const CombineInput<scalar> in(
      random, plan, {Normalize::softmax, Normalize::sum, Normalize::none, Normalize::ones});
  Shifted<scalar> got(plan.tokens * in.hidden, random.below(2)),
      want(plan.tokens * in.hidden, 0, kOtherBefore);
  const int64_t weights = in.normalize == Normalize::ones ? 0 : plan.index.size();
  Guarded<float> got_weight(weights), want_weight(weights, kOtherBefore);
  cpu::combine(in.args(want, want_weight), kScalar<scalar>, 0, plan.tokens);
  EXPECT_STREQ(cuda::combine(in.args(got, got_weight), kScalar<scalar>, nullptr), nullptr);
  expect_near("weight", got_weight, want_weight, 1);
  expect_near("out", got, want, in.terms());
}

TYPED_TEST(CudaCombine, Forward) {
  for_seeds(80, [](Random& random) { check_combine<TypeParam>(random, random_plan(random)); });
}

TYPED_TEST(CudaCombine, ForwardOfBrokenPlans) {
  for_seeds(40, [](Random& random) {
    check_combine<TypeParam>(random,
                             make_broken_plan(random, 33, one_of(random, kCudaChoices),
                                              one_of(random, kCudaExperts), random.chance(0.5)));
  });
}

template <class scalar> struct CombineGradients {
  Shifted<scalar> rows;
  Guarded<float> score;
  Guarded<int32_t> source; // scratch of the kernels

  CombineGradients(const PlanCase& plan, int64_t hidden, int64_t shift, int before)
      : rows(plan.rows * hidden, shift, before), score(plan.index.size(), before),
        source(plan.rows, before) {}
};

template <class scalar>
CombineBackwardArgs backward_args(const CombineInput<scalar>& in, const Guarded<float>& weight,
                                  CombineGradients<scalar>& out) {
  return {.plan = in.plan.plan(),
          .grad = in.grad.data(),
          .rows = in.rows.data(),
          .score = in.score.data(),
          .weight = weight.data(),
          .hidden = in.hidden,
          .normalize = in.normalize,
          .grad_rows = out.rows.data(),
          .grad_score = out.score.data(),
          .source = out.source.data()};
}

TYPED_TEST(CudaCombine, Backward) {
  for_seeds(80, [](Random& random) {
    const PlanCase plan = random_plan(random);
    const CombineInput<TypeParam> in(random, plan,
                                     {Normalize::softmax, Normalize::sum, Normalize::none});
    Shifted<TypeParam> out(plan.tokens * in.hidden, 0);
    Guarded<float> weight(plan.index.size());
    cpu::combine(in.args(out, weight), kScalar<TypeParam>, 0, plan.tokens);

    CombineGradients<TypeParam> want(plan, in.hidden, 0, kOtherBefore);
    std::fill(want.source.begin(), want.source.end(), -1);
    cpu::combine_backward(backward_args(in, weight, want), kScalar<TypeParam>, 0, plan.tokens);
    cpu::clear_unowned(want.rows.data(), want.source.data(),
                       in.hidden * static_cast<int64_t>(sizeof(TypeParam)), 0, plan.rows);
    CombineGradients<TypeParam> got(plan, in.hidden, random.below(2), kBefore);
    EXPECT_STREQ(
        cuda::combine_backward(backward_args(in, weight, got), kScalar<TypeParam>, nullptr),
        nullptr);
    expect_near("grad_rows", got.rows, want.rows, 8);
    expect_near("grad_score", got.score, want.score, 2.0 * static_cast<double>(in.hidden));
  });
}

TYPED_TEST(CudaCombine, BackwardOfBrokenPlansTouchesNothingOutside) {
  for_seeds(40, [](Random& random) {
    const PlanCase plan = make_broken_plan(random, 33, one_of(random, kCudaChoices),
                                           one_of(random, kCudaExperts), random.chance(0.5));
    const CombineInput<TypeParam> in(random, plan, {Normalize::softmax});
    const auto weight = random.normals<float>(plan.index.size());
    CombineGradients<TypeParam> got(plan, in.hidden, 0, kBefore);
    EXPECT_STREQ(
        cuda::combine_backward(backward_args(in, weight, got), kScalar<TypeParam>, nullptr),
        nullptr);
  });
}

} // namespace
} // namespace lah::ops
