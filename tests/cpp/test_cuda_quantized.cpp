// dispatch_quantized and dequantize: the CUDA kernels, emulated, beside those for the CPU. Codes,
// scales and sources agree in every bit.
#include "cuda_fixture.hpp"

#include <cmath>

#include "quantized_fixture.hpp"

namespace lah::ops {
namespace {

template <class scalar> struct CudaQuantized : testing::Test {};
TYPED_TEST_SUITE(CudaQuantized, CudaRowTypes);

PlanCase random_plan(Random& random) {
  const auto tokens = one_of(random, kCudaTokens), choices = one_of(random, kCudaChoices),
             experts = one_of(random, kCudaExperts);
  return make_plan(random, tokens, choices, experts, random.any_of<int64_t>({1, 1, 8}),
                   random.any_of<int64_t>({0, 0, 3}), random.chance(0.5));
}

TYPED_TEST(CudaQuantized, DispatchGivesTheSameBits) {
  for_seeds(150, [](Random& random) {
    const PlanCase plan = random_plan(random);
    const QuantizedLayout layout(random, one_of(random, kCudaWidths));
    Shifted<TypeParam> x(plan.tokens * layout.hidden, random.below(3));
    if (layout.hidden > 0)
      fill_tokens(random, x, layout.hidden);
    const int64_t bytes = plan.rows * layout.row_bytes(), scales = plan.rows * layout.blocks;
    Shifted<uint8_t> got(bytes, random.below(2) * layout.element_bytes());
    Shifted<uint8_t> want(bytes, 0, kOtherBefore);
    Guarded<float> got_scale(scales), want_scale(scales, kOtherBefore);
    Guarded<int32_t> got_source(plan.rows), want_source(plan.rows, 0xff);
    DispatchQuantizedArgs args{plan.plan(),   x.data(),    layout.hidden,     layout.block,
                               layout.blocks, want.data(), want_scale.data(), want_source.data()};
    cpu::dispatch_quantized(args, kScalar<TypeParam>, layout.quantized, 0, plan.tokens);
    cpu::clear_unowned(args.rows, args.source, layout.row_bytes(), 0, plan.rows);
    cpu::clear_unowned(args.scale, args.source, layout.scale_bytes(), 0, plan.rows);
    args.rows = got.data();
    args.scale = got_scale.data();
    args.source = got_source.data();
    EXPECT_STREQ(cuda::dispatch_quantized(args, kScalar<TypeParam>, layout.quantized, nullptr),
                 nullptr);
    expect_same("source", got_source, want_source);
    expect_same("scale", got_scale, want_scale);
    expect_same("rows", got, want);
  });
}

TYPED_TEST(CudaQuantized, DequantizeGivesTheSameValues) {
  for_seeds(150, [](Random& random) {
    const int64_t rows = one_of(random, kCudaTokens);
    const QuantizedLayout layout(random, one_of(random, kCudaWidths));
    Shifted<uint8_t> codes(rows * layout.row_bytes(), random.below(2) * layout.element_bytes());
    for (uint8_t& byte : codes)
      byte = static_cast<uint8_t>(random.engine());
    Guarded<float> scale = random.normals<float>(rows * layout.blocks);
    for (float& value : scale)
      value = random.chance(0.1) ? random.any_of({kNan, 0.0f, 0x1p-126f}) : value;
    const int64_t shift = random.below(2);
    Shifted<TypeParam> got(rows * layout.hidden, shift), want(got.size(), 0, kOtherBefore);
    DequantizeArgs args{codes.data(), scale.data(),  rows,       layout.hidden,
                        layout.block, layout.blocks, want.data()};
    cpu::dequantize(args, kScalar<TypeParam>, layout.quantized, 0, rows);
    args.out = got.data();
    EXPECT_STREQ(cuda::dequantize(args, kScalar<TypeParam>, layout.quantized, nullptr), nullptr);
    for (int64_t i = 0; i < want.size(); ++i) { // NaN have many bit patterns
      const bool same =
          std::isnan(wide(want[i])) ? std::isnan(wide(got[i])) : wide(got[i]) == wide(want[i]);
      ASSERT_TRUE(same) << i << ": " << wide(got[i]) << ", want " << wide(want[i]);
    }
  });
}

TEST(CudaQuantizedPlan, BrokenPlansTouchNothingOutside) {
  for_seeds(60, [](Random& random) {
    const PlanCase plan = make_broken_plan(random, 33, one_of(random, kCudaChoices),
                                           one_of(random, kCudaExperts), random.chance(0.5));
    const QuantizedLayout layout(random, 33);
    Guarded<float> x(33 * 33), scale(plan.rows * layout.blocks);
    fill_tokens(random, x, 33);
    Guarded<uint8_t> rows(plan.rows * layout.row_bytes());
    Guarded<int32_t> source(plan.rows);
    const DispatchQuantizedArgs args{plan.plan(),   x.data(),    33,           layout.block,
                                     layout.blocks, rows.data(), scale.data(), source.data()};
    EXPECT_STREQ(cuda::dispatch_quantized(args, Scalar::f32, layout.quantized, nullptr), nullptr);
    const std::vector<int64_t> owner = plan.owners();
    for (int64_t row = 0; row < plan.rows; ++row)
      ASSERT_EQ(source[row] >= 0, owner[static_cast<size_t>(row)] >= 0) << "row " << row;
  });
}

} // namespace
} // namespace lah::ops
