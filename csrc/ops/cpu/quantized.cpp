#include <algorithm>
#include <memory>

#include "base/float8.hpp"
#include "ops/cpu/simd.h"

namespace lah::ops::cpu {
namespace {

constexpr int64_t kChunk = 4 * kLanes; // elements that are computed before they are narrowed

// The bits of |x|. By reference, as loops that copy a struct of 16 bits do not vectorise.
LAH_INLINE int32_t magnitude(const float& x) {
  return std::bit_cast<int32_t>(x) & std::numeric_limits<int32_t>::max();
}
LAH_INLINE int64_t magnitude(const double& x) {
  return std::bit_cast<int64_t>(x) & std::numeric_limits<int64_t>::max();
}
template <class half> LAH_INLINE int16_t magnitude(const half& x) {
  return static_cast<int16_t>(x.bits & 0x7fff);
}

// Magnitudes are ordered as their bits are, with NaN above infinity: integers find the largest,
// lose no NaN, and may be compared in any order.
template <class scalar> LAH_INLINE float absmax(const scalar* x, int64_t n) {
  using bits = decltype(magnitude(*x));
  bits largest = 0;
  for (int64_t i = 0; i < n; ++i)
    largest = std::max(largest, magnitude(x[i]));
  return static_cast<float>(widen(std::bit_cast<scalar>(largest)));
}

struct Scale {
  float value;
  float inverse; // 0: the elements become zeros
};

// Elements up to absmax become codes up to `largest`. Not below 2^-126, so that neither the scale
// nor its inverse leaves the normal floats.
LAH_INLINE Scale scale_of(float absmax, float largest) {
  if (!(absmax <= std::numeric_limits<float>::max()))
    return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  if (absmax == 0.0f)
    return {0.0f, 0.0f};
  const float scale = std::max(absmax / largest, std::numeric_limits<float>::min());
  return {scale, 1.0f / scale};
}

// What rows are made of, and how: in one pass over 32-bit values, one to or from the rows, as loops
// that also narrow do not vectorise. What is encoded was scaled: it is kLargest at most, or little
// more.
struct Int8 {
  using type = int8_t;
  using wide = int32_t;
  static constexpr float kLargest = 127.0f;
  static LAH_INLINE wide encode(float x) { // adding 1.5 * 2^23 rounds to the nearest even integer
    return std::bit_cast<int32_t>(x + 12582912.0f);
  }
  static LAH_INLINE float decode(wide x) { return static_cast<float>(x); }
};
struct E4m3 {
  using type = uint8_t;
  using wide = uint32_t;
  static constexpr float kLargest = 448.0f;
  static LAH_INLINE wide encode(float x) { return e4m3_of_float(x); }
  static LAH_INLINE float decode(wide x) { return float_of_e4m3(x); }
};
struct Bf16 { // never scaled
  using type = uint16_t;
  using wide = uint32_t;
  static constexpr float kLargest = 1.0f;
  static LAH_INLINE wide encode(float x) { return bfloat16_bits(x); }
  static LAH_INLINE float decode(wide x) { return std::bit_cast<float>(x << 16); }
};

template <class code, class scalar>
LAH_INLINE void quantize_chunk(const scalar* x, float inverse, typename code::type* out,
                               int64_t n) {
  typename code::wide value[kChunk];
  for (int64_t i = 0; i < n; ++i)
    value[i] = code::encode(static_cast<float>(widen(x[i])) * inverse);
  for (int64_t i = 0; i < n; ++i)
    out[i] = static_cast<typename code::type>(value[i]);
}

template <class code, class scalar>
LAH_INLINE void quantize(const scalar* x, float inverse, typename code::type* out, int64_t n) {
  int64_t i = 0;
  for (; i + kChunk <= n; i += kChunk)
    quantize_chunk<code>(x + i, inverse, out + i, kChunk);
  quantize_chunk<code>(x + i, inverse, out + i, n - i);
}

// One token: its codes and their scales.
template <class code, class scalar>
LAH_INLINE void quantize_row(const DispatchQuantizedArgs& a, const scalar* x,
                             typename code::type* row, float* scale) {
  if (a.blocks == 0)
    quantize<code>(x, 1.0f, row, a.hidden);
  for (int64_t b = 0; b < a.blocks; ++b) {
    const int64_t begin = b * a.block, n = std::min(a.block, a.hidden - begin);
    const Scale of_block = scale_of(absmax(x + begin, n), code::kLargest);
    scale[b] = of_block.value;
    if (of_block.inverse > 0.0f)
      quantize<code>(x + begin, of_block.inverse, row + begin, n);
    else
      std::fill_n(row + begin, n, typename code::type{});
  }
}

// Token-major: each token is read and quantized once, and stored k times.
template <class code, class scalar>
LAH_MULTIVERSION void dispatch_range(const DispatchQuantizedArgs& a, int64_t begin, int64_t end) {
  using type = typename code::type;
  const auto row_bytes = a.hidden * static_cast<int64_t>(sizeof(type));
  const auto scale_bytes = a.blocks * static_cast<int64_t>(sizeof(float));
  const auto row = std::make_unique<type[]>(static_cast<size_t>(a.hidden));
  const auto scale = std::make_unique<float[]>(static_cast<size_t>(a.blocks));
  auto* rows = static_cast<type*>(a.rows);
  const bool stream = can_stream(rows, row_bytes, a.plan.rows * row_bytes);
  for (int64_t t = begin; t < end; ++t) {
    bool quantized = false;
    for (int64_t i = t * a.plan.choices; i < (t + 1) * a.plan.choices; ++i) {
      const int64_t to = live_row(a.plan, i);
      if (to < 0)
        continue;
      if (!quantized)
        quantize_row<code>(a, static_cast<const scalar*>(a.x) + t * a.hidden, row.get(),
                           scale.get());
      quantized = true;
      copy(rows + to * a.hidden, row.get(), row_bytes, stream);
      copy(a.scale + to * a.blocks, scale.get(), scale_bytes, false);
      a.source[to] = static_cast<int32_t>(i);
    }
  }
  stream_fence(stream);
}

template <class code, class scalar>
LAH_INLINE void dequantize_chunk(const typename code::type* row, float scale, scalar* out,
                                 int64_t n) {
  float value[kChunk];
  for (int64_t i = 0; i < n; ++i)
    value[i] = code::decode(row[i]) * scale;
  for (int64_t i = 0; i < n; ++i)
    narrow_into(out[i], value[i]);
}

template <class code, class scalar>
LAH_INLINE void dequantize_block(const typename code::type* row, float scale, scalar* out,
                                 int64_t n, bool stream) {
  int64_t i = 0;
  for (; i + kChunk <= n; i += kChunk) {
    alignas(16) scalar chunk[kChunk];
    dequantize_chunk<code>(row + i, scale, chunk, kChunk);
    copy(out + i, chunk, kChunk * static_cast<int64_t>(sizeof(scalar)), stream);
  }
  dequantize_chunk<code>(row + i, scale, out + i, n - i);
}

template <class code, class scalar>
LAH_MULTIVERSION void dequantize_range(const DequantizeArgs& a, int64_t begin, int64_t end) {
  const auto out_bytes = a.hidden * static_cast<int64_t>(sizeof(scalar));
  const bool stream = can_stream(a.out, out_bytes, a.count * out_bytes);
  for (int64_t r = begin; r < end; ++r) {
    const auto* row = static_cast<const typename code::type*>(a.rows) + r * a.hidden;
    auto* out = static_cast<scalar*>(a.out) + r * a.hidden;
    const float* scale = a.scale + r * a.blocks;
    if (a.blocks == 0)
      dequantize_block<code>(row, 1.0f, out, a.hidden, stream);
    for (int64_t b = 0; b < a.blocks; ++b) {
      const int64_t first = b * a.block, n = std::min(a.block, a.hidden - first);
      dequantize_block<code>(row + first, scale[b], out + first, n, stream);
    }
  }
  stream_fence(stream);
}

template <class Function> void with_code(Quantized quantized, const Function& f) {
  switch (quantized) {
  case Quantized::int8:
    return f(Int8{});
  case Quantized::e4m3:
    return f(E4m3{});
  case Quantized::bf16:
    return f(Bf16{});
  }
}

} // namespace

void dispatch_quantized(const DispatchQuantizedArgs& args, Scalar dtype, Quantized quantized,
                        int64_t begin, int64_t end) {
  with_code(quantized, [&](auto code) {
    with_scalar(dtype, [&](auto type) {
      dispatch_range<decltype(code), decltype(type)>(args, begin, end);
    });
  });
}

void dequantize(const DequantizeArgs& args, Scalar dtype, Quantized quantized, int64_t begin,
                int64_t end) {
  with_code(quantized, [&](auto code) {
    with_scalar(dtype, [&](auto type) {
      dequantize_range<decltype(code), decltype(type)>(args, begin, end);
    });
  });
}

} // namespace lah::ops::cpu
