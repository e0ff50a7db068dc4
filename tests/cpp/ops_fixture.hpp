// What the tests of the CPU kernels share: buffers that notice accesses outside them, random
// numbers and plans, and the ways to split work into ranges.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/float16.hpp"
#include "ops/kernels.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

namespace lah::ops {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// What outputs hold before a kernel runs. Two runs over different bytes agree only if everything
// was written.
constexpr int kBefore = 0xaa, kOtherBefore = 0x55;

// An array between two guards. A write into a guard is found at the end; with AddressSanitizer any
// access to one stops the test at once. Empty arrays are null, like those of torch.
template <class T> class Guarded {
public:
  explicit Guarded(int64_t size = 0, int fill = kBefore)
      : size_(static_cast<size_t>(size)), memory_(allocate()) {
    std::memset(memory_.get(), kGuardByte, allocated());
    std::memset(start(), fill, bytes());
    ASAN_POISON_MEMORY_REGION(memory_.get(), kGuard);
    ASAN_POISON_MEMORY_REGION(start() + bytes(), allocated() - kGuard - bytes());
  }
  Guarded(Guarded&& other) noexcept : size_(other.size_), memory_(std::move(other.memory_)) {}
  Guarded& operator=(Guarded&&) = delete;
  ~Guarded() {
    if (memory_ == nullptr)
      return;
    ASAN_UNPOISON_MEMORY_REGION(memory_.get(), allocated());
    size_t changed = 0;
    for (size_t i = 0; i < allocated(); ++i)
      changed += (i < kGuard || i >= kGuard + bytes()) && memory_.get()[i] != kGuardByte;
    EXPECT_EQ(changed, 0u) << "bytes written outside of an array of " << bytes() << " bytes";
  }

  T* data() { return size_ == 0 ? nullptr : reinterpret_cast<T*>(start()); }
  const T* data() const { return const_cast<Guarded*>(this)->data(); }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return static_cast<int64_t>(size_); }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }

private:
  static constexpr size_t kAlignment = 64, kGuard = 1024; // a block of 64 doubles beside it is seen
  static constexpr unsigned char kGuardByte = 0xc3;
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };

  size_t bytes() const { return size_ * sizeof(T); }
  size_t allocated() const {
    return (kGuard + bytes() + kGuard + kAlignment - 1) / kAlignment * kAlignment;
  }
  unsigned char* start() { return memory_.get() + kGuard; }
  unsigned char* allocate() const {
    void* memory = std::aligned_alloc(kAlignment, allocated());
    if (memory == nullptr)
      throw std::bad_alloc();
    return static_cast<unsigned char*>(memory);
  }

  size_t size_;
  std::unique_ptr<unsigned char, Free> memory_;
};

// The bits of some arrays, one after the other.
using Bits = std::vector<std::byte>;
template <class... T> Bits bits_of(const Guarded<T>&... arrays) {
  Bits all;
  const auto add = [&](std::span<const std::byte> bytes) {
    all.insert(all.end(), bytes.begin(), bytes.end());
  };
  (add(std::as_bytes(std::span(arrays.begin(), arrays.end()))), ...);
  return all;
}

// How [0, count) is split into ranges: the results of a kernel must not depend on it.
enum class Split { whole, ones_from_the_end, uneven, threads };

template <class Work> void over(Split split, int64_t count, const Work& work) {
  if (split == Split::whole)
    return work(0, count);
  if (split == Split::ones_from_the_end) {
    for (int64_t i = count - 1; i >= 0; --i)
      work(i, i + 1);
    return;
  }
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (int64_t begin = 0, length = 1; begin < count; begin += length++)
    ranges.emplace_back(begin, std::min(begin + length, count));
  if (split == Split::uneven) {
    for (const auto& [begin, end] : ranges)
      work(begin, end);
    return;
  }
  constexpr size_t kThreads = 3;
  std::vector<std::jthread> threads;
  for (size_t first = 0; first < kThreads; ++first)
    threads.emplace_back([&, first] {
      for (size_t i = first; i < ranges.size(); i += kThreads)
        work(ranges[i].first, ranges[i].second);
    });
}

// run(split, before) -> Bits of its outputs: the same for every split, whatever they held before.
template <class Run> void expect_same_bits_for_any_split(const Run& run) {
  const Bits want = run(Split::whole, kBefore);
  for (const Split split : {Split::ones_from_the_end, Split::uneven, Split::threads})
    EXPECT_TRUE(run(split, kOtherBefore) == want) << "split " << static_cast<int>(split);
}

// The dtypes of rows.
template <class scalar> constexpr Scalar kScalar = Scalar::f32;
template <> inline constexpr Scalar kScalar<double> = Scalar::f64;
template <> inline constexpr Scalar kScalar<BFloat16> = Scalar::bf16;
template <> inline constexpr Scalar kScalar<Float16> = Scalar::f16;
using RowTypes = ::testing::Types<float, double, BFloat16, Float16>;

template <class scalar> double wide(scalar x) {
  return static_cast<double>(widen(x));
}

// How far a value may be from the exact one, when the absolute values of its terms add up to
// `size`: sums round in sum_t, and once to scalar (half of them lose the smallest numbers).
template <class scalar> double bound(double want, double size) {
  constexpr double kSums = std::is_same_v<scalar, double> ? 1e-14 : 4e-6;
  constexpr double kRound = std::is_same_v<scalar, BFloat16>  ? 0x1p-8
                            : std::is_same_v<scalar, Float16> ? 0x1p-11
                                                              : 0.0;
  constexpr double kSmallest = std::is_same_v<scalar, Float16> ? 0x1p-24 : 1e-30;
  return kSums * size + kRound * std::abs(want) + kSmallest;
}

struct Random {
  std::mt19937 engine;
  explicit Random(uint32_t seed) : engine(seed) {}

  double normal() { return std::normal_distribution<double>()(engine); }
  int64_t below(int64_t end) { return std::uniform_int_distribution<int64_t>(0, end - 1)(engine); }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine); }
  template <class T> T any_of(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int64_t>(values.size()))];
  }
  // Unit scale: small inputs would hide what is wrong behind an absolute tolerance.
  template <class scalar> Guarded<scalar> normals(int64_t size) {
    Guarded<scalar> x(size);
    for (scalar& value : x)
      value = narrow<scalar>(static_cast<sum_t<scalar>>(normal()));
    return x;
  }
  // Anything an int32 may hold, mostly near what is allowed.
  int32_t garbage(int64_t limit) {
    const auto near = static_cast<int32_t>(below(limit + 2));
    return any_of<int32_t>({near, near, near, -1, -near, std::numeric_limits<int32_t>::min(),
                            std::numeric_limits<int32_t>::max(), static_cast<int32_t>(engine())});
  }
};

// A plan as route_grid makes it, of random choices; or a broken one.
struct PlanCase {
  int64_t tokens, choices, experts, rows;
  Guarded<int32_t> index, rank, offset;
  Guarded<bool> ok;
  bool masked;

  PlanCase(int64_t tokens_, int64_t choices_, int64_t experts_, int64_t rows_, bool masked_)
      : tokens(tokens_), choices(choices_), experts(experts_), rows(rows_), index(tokens * choices),
        rank(tokens * choices), offset(experts + 1), ok(rows), masked(masked_) {}

  Plan plan() const {
    return {index.data(), rank.data(), offset.data(), masked ? ok.data() : nullptr,
            tokens,       choices,     experts,       rows};
  }

  // The row of an assignment, or -1: by the definition, apart from the kernels.
  int64_t row_of(int64_t assignment) const {
    const int64_t e = index[assignment], r = rank[assignment];
    if (e < 0 || e >= experts || r < 0)
      return -1;
    const int64_t row = offset[e] + r;
    return row < 0 || row >= rows || (masked && !ok[row]) ? -1 : row;
  }

  // The assignment that owns each row, or -1; the last one where a broken plan has several.
  std::vector<int64_t> owners() const {
    std::vector<int64_t> owner(static_cast<size_t>(rows), -1);
    for (int64_t i = 0; i < index.size(); ++i)
      if (const int64_t row = row_of(i); row >= 0)
        owner[static_cast<size_t>(row)] = i;
    return owner;
  }
};

inline void fill_ok(Random& random, PlanCase& plan, double share) {
  for (bool& ok : plan.ok)
    ok = random.chance(share);
}

// only >= 0: every choice is this expert.
inline PlanCase make_plan(Random& random, int64_t tokens, int64_t choices, int64_t experts,
                          int64_t align, int64_t capacity, bool masked, int64_t only = -1) {
  PlanCase plan(tokens, choices, experts, rows_of(tokens * choices, experts, align), masked);
  std::vector<int64_t> count(static_cast<size_t>(experts), 0);
  for (int64_t i = 0; i < plan.index.size(); ++i) {
    const int64_t e = only >= 0 ? only : random.below(experts + 1) - 1;
    const int64_t rank = e < 0 ? -1 : count[static_cast<size_t>(e)]++;
    plan.index[i] = static_cast<int32_t>(e);
    plan.rank[i] = static_cast<int32_t>(capacity > 0 && rank >= capacity ? -1 : rank);
  }
  int64_t next = 0;
  for (int64_t e = 0; e < experts; ++e) {
    plan.offset[e] = static_cast<int32_t>(next);
    const int64_t kept = capacity > 0 ? std::min(count[static_cast<size_t>(e)], capacity)
                                      : count[static_cast<size_t>(e)];
    next += (kept + align - 1) / align * align;
  }
  plan.offset[experts] = static_cast<int32_t>(next);
  fill_ok(random, plan, 0.7);
  return plan;
}

// A plan that no router made: ids, ranks and offsets of any value.
inline PlanCase make_broken_plan(Random& random, int64_t tokens, int64_t choices, int64_t experts,
                                 bool masked) {
  PlanCase plan = make_plan(random, tokens, choices, experts, 1, 0, masked);
  for (int64_t i = 0; i < plan.index.size(); ++i) {
    plan.index[i] = random.chance(0.5) ? plan.index[i] : random.garbage(experts);
    plan.rank[i] = random.chance(0.5) ? plan.rank[i] : random.garbage(plan.rows);
  }
  for (int32_t& offset : plan.offset)
    offset = random.chance(0.7) ? offset : random.garbage(plan.rows);
  return plan;
}

// The sizes at which loops over lanes, blocks and tiles end.
constexpr int64_t kTokenCounts[] = {0, 1, 63, 64, 65, 130};
constexpr int64_t kWidths[] = {1, 3, 15, 16, 17, 63, 64, 65, 200};
constexpr int64_t kExpertCounts[] = {1, 2, 31, 32, 33, 300};

} // namespace lah::ops
