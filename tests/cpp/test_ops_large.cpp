// Arrays of more than 2^32 elements: offsets are 64 bits wide. Memory is only reserved, and kernels
// work on the last token alone, so that a few pages are real.
#include "ops_fixture.hpp"

#include <sys/mman.h>

namespace lah::ops {
namespace {

class Reserved {
public:
  explicit Reserved(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
  }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  ~Reserved() {
    if (*this)
      munmap(memory_, bytes_);
  }

  explicit operator bool() const {
    return memory_ != MAP_FAILED;
  }
  template <class T> T* as() const {
    return static_cast<T*>(memory_);
  }

private:
  size_t bytes_;
  void* memory_;
};

#define RESERVE(name, bytes)                                                                       \
  const Reserved name(bytes);                                                                      \
  if (!name)                                                                                       \
  GTEST_SKIP() << "this system reserves no " << (bytes) << " bytes"

constexpr int64_t kTokens = 4096, kHidden = (int64_t{1} << 20) + 16; // of f16: 8 GiB
constexpr int64_t kLast = kTokens - 1;
constexpr int64_t kBytes = kTokens * kHidden * 2;

const Float16 kOne = narrow<Float16>(1.0f), kThree = narrow<Float16>(3.0f);

// Every token goes to one expert: token t owns row t.
PlanCase identity_plan() {
  Random random(0);
  return make_plan(random, kTokens, 1, 1, 1, 0, false, 0);
}

TEST(OpsLarge, Dispatch) {
  RESERVE(x, kBytes);
  RESERVE(rows, kBytes);
  const PlanCase plan = identity_plan();
  Guarded<int32_t> source(kTokens);
  std::fill_n(x.as<Float16>() + kLast * kHidden, kHidden, kOne);
  const DispatchArgs args{plan.plan(), x.as<void>(), kHidden * 2, rows.as<void>(), source.data()};
  cpu::dispatch(args, kLast, kTokens);
  const Float16* last = rows.as<Float16>() + kLast * kHidden;
  EXPECT_EQ(source[kLast], kLast);
  EXPECT_EQ(std::memcmp(last, x.as<Float16>() + kLast * kHidden, kHidden * 2), 0);
  source[kLast] = -1;
  cpu::clear_unowned(rows.as<void>(), source.data(), kHidden * 2, kLast, kTokens);
  EXPECT_TRUE(std::all_of(last, last + kHidden, [](Float16 h) { return h.bits == 0; }));
}

TEST(OpsLarge, CombineAndItsGradients) {
  RESERVE(rows, kBytes);
  RESERVE(grad, kBytes);
  RESERVE(out, kBytes);
  RESERVE(grad_rows, kBytes);
  const PlanCase plan = identity_plan();
  Guarded<float> score(kTokens, 0), weight(kTokens), grad_score(kTokens);
  Guarded<int32_t> source(kTokens);
  const auto last = [](const Reserved& memory) { return memory.as<Float16>() + kLast * kHidden; };
  std::fill_n(last(rows), kHidden, kThree);
  std::fill_n(last(grad), kHidden, kOne);
  const CombineArgs args{.plan = plan.plan(),
                         .rows = rows.as<void>(),
                         .score = score.data(),
                         .residual = grad.as<void>(),
                         .hidden = kHidden,
                         .normalize = Normalize::softmax,
                         .out = out.as<void>(),
                         .weight = weight.data()};
  cpu::combine(args, Scalar::f16, kLast, kTokens);
  const uint16_t four = narrow<Float16>(4.0f).bits;
  EXPECT_TRUE(
      std::all_of(last(out), last(out) + kHidden, [&](Float16 h) { return h.bits == four; }));
  const CombineBackwardArgs backward{.plan = plan.plan(),
                                     .grad = grad.as<void>(),
                                     .rows = rows.as<void>(),
                                     .score = score.data(),
                                     .weight = weight.data(),
                                     .hidden = kHidden,
                                     .normalize = Normalize::none,
                                     .grad_rows = grad_rows.as<void>(),
                                     .grad_score = grad_score.data(),
                                     .source = source.data()};
  cpu::combine_backward(backward, Scalar::f16, kLast, kTokens);
  EXPECT_EQ(std::memcmp(last(grad_rows), last(grad), kHidden * 2), 0);
  EXPECT_EQ(grad_score[kLast], 3.0f * static_cast<float>(kHidden));
}

TEST(OpsLarge, Swiglu) {
  RESERVE(x, 2 * kBytes);
  RESERVE(grad, kBytes);
  RESERVE(out, kBytes);
  RESERVE(grad_x, 2 * kBytes);
  Float16* last = x.as<Float16>() + kLast * 2 * kHidden;
  std::fill_n(last, kHidden, narrow<Float16>(20.0f)); // where silu is the identity
  std::fill_n(last + kHidden, kHidden, kThree);
  std::fill_n(grad.as<Float16>() + kLast * kHidden, kHidden, kOne);
  cpu::swiglu({x.as<void>(), nullptr, kTokens, kHidden, out.as<void>()}, Scalar::f16, kLast,
              kTokens);
  cpu::swiglu_backward({.grad = grad.as<void>(),
                        .x = x.as<void>(),
                        .weight = nullptr,
                        .rows = kTokens,
                        .width = kHidden,
                        .grad_x = grad_x.as<void>(),
                        .grad_weight = nullptr},
                       Scalar::f16, kLast, kTokens);
  const auto holds = [](const Float16* from, float value) {
    return std::all_of(from, from + kHidden, [&](Float16 h) { return widen(h) == value; });
  };
  EXPECT_TRUE(holds(out.as<Float16>() + kLast * kHidden, 60.0f));
  EXPECT_TRUE(holds(grad_x.as<Float16>() + kLast * 2 * kHidden, 3.0f));
  EXPECT_TRUE(holds(grad_x.as<Float16>() + (kLast * 2 + 1) * kHidden, 20.0f));
}

TEST(OpsLarge, RouteAndItsGradient) {
  constexpr int64_t kRouted = 65537, kLastRouted = kRouted - 1;
  constexpr Grid grid{1, {kMaxExperts}, kMaxExperts, kMaxExperts};
  RESERVE(logits, kRouted * kMaxExperts * 4);
  RESERVE(grad, kRouted * kMaxExperts * 4);
  Guarded<int32_t> index(kRouted, 0xff);
  Guarded<float> score(kRouted), lse(kRouted), of_score(kRouted, 0);
  constexpr int64_t kBest = 54321;
  logits.as<float>()[kLastRouted * kMaxExperts + kBest] = 100;
  RouteGridArgs args{};
  args.grid = grid, args.logits = logits.as<void>();
  args.tokens = kRouted, args.k = 1, args.align = 1;
  args.index = index.data(), args.score = score.data(), args.lse = lse.data();
  cpu::route_tokens(args, Scalar::f32, kLastRouted, kRouted);
  EXPECT_EQ(index[kLastRouted], kBest);
  EXPECT_EQ(score[kLastRouted], 100.0f);
  EXPECT_EQ(lse[kLastRouted], 100.0f);
  of_score[kLastRouted] = 2;
  RouteBackwardArgs backward{};
  backward.grid = grid, backward.grad_score = of_score.data(), backward.logits = logits.as<void>();
  backward.index = index.data(), backward.tokens = kRouted, backward.choices = 1;
  backward.grad_logits = grad.as<void>();
  cpu::route_backward(backward, Scalar::f32, kLastRouted, kRouted);
  EXPECT_EQ(grad.as<float>()[kLastRouted * kMaxExperts + kBest], 2.0f);
}

} // namespace
} // namespace lah::ops
