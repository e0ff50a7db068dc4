// swiglu and its gradients: the CUDA kernels, emulated, beside those for the CPU.
#include "cuda_fixture.hpp"

#include <cmath>

namespace lah::ops {
namespace {

template <class scalar> struct CudaSwiglu : testing::Test {};
TYPED_TEST_SUITE(CudaSwiglu, CudaRowTypes);

template <class scalar> struct GateInput {
  int64_t rows, width, shift;
  Shifted<scalar> x, grad;
  Guarded<float> weight;
  bool weighted;

  explicit GateInput(Random& random)
      : rows(one_of(random, kCudaTokens)), width(one_of(random, kCudaWidths)),
        shift(random.below(2)), x(shifted_normals<scalar>(random, rows * 2 * width, shift)),
        grad(shifted_normals<scalar>(random, rows * width, random.below(2))),
        weight(random.normals<float>(rows)), weighted(random.chance(0.5)) {
    for (scalar& value : x)
      if (random.chance(0.01))
        value = narrow<scalar>(random.any_of({kInf, -kInf, kNan, 60.0f, -60.0f, 0.0f, -0.0f}));
  }
  const float* weights() const { return weighted ? weight.data() : nullptr; }
};

TYPED_TEST(CudaSwiglu, Forward) {
  for_seeds(60, [](Random& random) {
    const GateInput<TypeParam> in(random);
    Shifted<TypeParam> got(in.rows * in.width, in.shift), want(in.rows * in.width, 0, kOtherBefore);
    SwigluArgs args{in.x.data(), in.weights(), in.rows, in.width, want.data()};
    cpu::swiglu(args, kScalar<TypeParam>, 0, in.rows);
    args.out = got.data();
    EXPECT_STREQ(cuda::swiglu(args, kScalar<TypeParam>, nullptr), nullptr);
    expect_near("out", got, want, 8);
  });
}

TYPED_TEST(CudaSwiglu, Backward) {
  for_seeds(60, [](Random& random) {
    const GateInput<TypeParam> in(random);
    Shifted<TypeParam> got(in.x.size(), in.shift), want(in.x.size(), 0, kOtherBefore);
    const int64_t weights = in.weighted ? in.rows : 0;
    Guarded<float> got_weight(weights), want_weight(weights, kOtherBefore);
    SwigluBackwardArgs args{.grad = in.grad.data(),
                            .x = in.x.data(),
                            .weight = in.weights(),
                            .rows = in.rows,
                            .width = in.width,
                            .grad_x = want.data(),
                            .grad_weight = want_weight.data()};
    cpu::swiglu_backward(args, kScalar<TypeParam>, 0, in.rows);
    args.grad_x = got.data();
    args.grad_weight = got_weight.data();
    EXPECT_STREQ(cuda::swiglu_backward(args, kScalar<TypeParam>, nullptr), nullptr);
    expect_near("grad_x", got, want, 64);
    expect_near("grad_weight", got_weight, want_weight, 64.0 * static_cast<double>(in.width));
  });
}

} // namespace
} // namespace lah::ops
