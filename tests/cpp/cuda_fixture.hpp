// What the tests of the CUDA kernels share. They run on the emulation, beside the CPU kernels on
// the same input: numbers of experts, rows and sources agree in every bit, values within rounding.
#pragma once

#include "cuda_emulation/emulator.hpp"
#include "ops_fixture.hpp"

namespace lah::ops {

// Around a warp and a block, and the widths around those of vectors and blocks.
constexpr int64_t kCudaTokens[] = {0, 1, 31, 32, 33, 130};
constexpr int64_t kCudaWidths[] = {0, 1, 3, 4, 8, 9, 64, 65, 200, 264, 520};
constexpr int64_t kCudaExperts[] = {1, 2, 31, 32, 33, 300};
constexpr int64_t kCudaChoices[] = {1, 2, 3, 8, 32};

template <class T, size_t n> T one_of(Random& random, const T (&values)[n]) {
  return values[random.below(n)];
}

// An array that starts `shift` elements after an address that is aligned for any access.
template <class T> class Shifted {
public:
  Shifted(int64_t size, int64_t shift, int fill = kBefore)
      : shift_(shift), memory_(size == 0 ? 0 : size + shift, fill) {}

  T* data() { return memory_.size() == 0 ? nullptr : memory_.data() + shift_; }
  const T* data() const { return const_cast<Shifted*>(this)->data(); }
  T* begin() { return data(); }
  T* end() { return data() + size(); }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size(); }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return memory_.size() == 0 ? 0 : memory_.size() - shift_; }

private:
  int64_t shift_;
  Guarded<T> memory_;
};

template <class scalar>
Shifted<scalar> shifted_normals(Random& random, int64_t size, int64_t shift) {
  Shifted<scalar> x(size, shift);
  for (scalar& value : x)
    value = narrow<scalar>(static_cast<float>(random.normal()));
  return x;
}

template <class Array> void expect_same(const char* what, const Array& got, const Array& want) {
  for (int64_t i = 0; i < want.size(); ++i)
    ASSERT_TRUE(std::memcmp(&got[i], &want[i], sizeof(got[i])) == 0)
        << what << "[" << i << "] is " << got[i] << ", want " << want[i];
}

// Both round: twice the bound, of sums whose terms have absolute values of `size` together.
template <class Array>
void expect_near(const char* what, const Array& got, const Array& want, double size) {
  for (int64_t i = 0; i < want.size(); ++i) {
    using scalar = std::remove_cvref_t<decltype(got[i])>;
    const double a = wide(got[i]), b = wide(want[i]);
    const bool near =
        a == b || (std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= 2 * bound<scalar>(b, size);
    ASSERT_TRUE(near) << what << "[" << i << "] is " << a << ", want " << b;
  }
}

// A switch of fibers takes many times as long under AddressSanitizer.
#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t kSeedShare = 4;
#else
constexpr uint32_t kSeedShare = 1;
#endif

// check(random) for every seed, on an emulation of the same seed.
template <class Check> void for_seeds(uint32_t count, const Check& check) {
  for (uint32_t seed = 0; seed < count / kSeedShare && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    cuda_emulation::seed(seed);
    check(random);
  }
}

inline Grid grid_of(std::initializer_list<int64_t> sizes) {
  Grid grid{};
  grid.experts = 1;
  for (const int64_t size : sizes) {
    grid.size[grid.dims++] = size;
    grid.logits += size;
    grid.experts *= size;
  }
  return grid;
}

// What a route writes, and its arguments. `in` says grid, logits, alive, tokens and options.
struct RouteOutput {
  RouteGridArgs args;
  Guarded<int32_t> index, rank, offset, count, tile_count;
  Guarded<float> score, lse, stats, tile_probability;

  RouteOutput(const RouteGridArgs& in, bool with_lse, bool with_stats, int before)
      : args(in), index(in.tokens * in.k, before), rank(in.tokens * in.k, before),
        offset(in.grid.experts + 1, before), count(in.grid.experts, before),
        tile_count(rank_tiles(in.tokens * in.k, in.grid.experts) * in.grid.experts, before),
        score(in.tokens * in.k, before), lse(with_lse ? in.tokens : 0, before),
        stats(with_stats ? 2 * in.grid.experts : 0, before),
        tile_probability(with_stats ? stats_tiles(in.tokens) * in.grid.experts : 0, before) {
    args.index = index.data();
    args.rank = rank.data();
    args.offset = offset.data();
    args.count = count.data();
    args.tile_count = tile_count.data();
    args.score = score.data();
    args.lse = lse.data();
    args.stats = stats.data();
    args.tile_probability = tile_probability.data();
  }
};

// choose(begin, end) over the tiles of statistics, then the plan.
template <class Choose> void route_on_cpu(const RouteGridArgs& a, const Choose& choose) {
  const int64_t tile = stats_tile(a.tokens);
  for (int64_t i = 0; i < stats_tiles(a.tokens); ++i)
    choose(i * tile, std::min((i + 1) * tile, a.tokens));
  cpu::route_plan(a, Scalar::f32);
}

using CudaRowTypes = testing::Types<float, BFloat16, Float16>;

} // namespace lah::ops
