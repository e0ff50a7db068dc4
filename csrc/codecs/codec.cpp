#include "codecs/codec.hpp"

#include <algorithm>

#include "base/float16.hpp"

namespace lah::codecs {
namespace {

// Blocks pass through arrays of fixed size: those loops vectorise, and nothing need be aligned.
using Floats = std::array<float, kBlock>;
using Values = std::array<int8_t, kBlock>;

// Calls f(begin, size) for every block; the size is a constant for all but a shorter last one.
template <class Function> LAH_INLINE void for_each_block(size_t count, const Function& f) {
  size_t at = 0;
  for (; at + kBlock <= count; at += kBlock)
    f(at, size_t{kBlock});
  if (at < count)
    f(at, count - at);
}

template <class half> void encode_halves(const std::byte* elements, size_t count, std::byte* wire) {
  for_each_block(count, [&](size_t at, size_t size) {
    Floats x{};
    std::array<half, kBlock> y;
    std::memcpy(x.data(), elements + at * sizeof(float), size * sizeof(float));
    for (size_t i = 0; i < kBlock; ++i)
      y[i] = narrow<half>(x[i]);
    std::memcpy(wire + at * sizeof(half), y.data(), size * sizeof(half));
  });
}

template <class half> void decode_halves(const std::byte* wire, size_t count, std::byte* elements) {
  for_each_block(count, [&](size_t at, size_t size) {
    std::array<half, kBlock> y{};
    Floats x;
    std::memcpy(y.data(), wire + at * sizeof(half), size * sizeof(half));
    for (size_t i = 0; i < kBlock; ++i)
      x[i] = widen(y[i]);
    std::memcpy(elements + at * sizeof(float), x.data(), size * sizeof(float));
  });
}

size_t scales_bytes(size_t count) {
  return (count + kBlock - 1) / kBlock * sizeof(BFloat16);
}

// The least bfloat16 that is not below largest / 127: no value clips. A float16 would not do: the
// gradients of a mean over a large batch are below what it can scale.
LAH_INLINE BFloat16 scale_for(float largest) {
  const uint32_t exact = std::bit_cast<uint32_t>(largest / 127.0f);
  return {static_cast<uint16_t>(std::max(1u, (exact + 0xffffu) >> 16))};
}

LAH_INLINE BFloat16 encode_block(const Floats& x, Values& q) {
  constexpr float kRound = 12582912.0f; // adding 1.5 * 2^23 leaves the integer in the low bits
  int32_t largest = 0; // bits of a magnitude: ordered as magnitudes are, and NaN above them all
  for (size_t i = 0; i < kBlock; ++i)
    largest = std::max(largest, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  if (largest == 0 || largest >= 0x7f800000) {
    q.fill(0);
    return {static_cast<uint16_t>(largest == 0 ? 0 : 0x7fc0)};
  }
  const BFloat16 scale = scale_for(std::bit_cast<float>(largest));
  const float divisor = widen(scale);
  for (size_t i = 0; i < kBlock; ++i)
    q[i] = static_cast<int8_t>(std::bit_cast<uint32_t>(x[i] / divisor + kRound) & 0xffu);
  return scale;
}

void encode_blocks(const std::byte* elements, size_t count, std::byte* wire) {
  const size_t scales = scales_bytes(count);
  std::byte* const values = wire + align_up(scales);
  for_each_block(count, [&](size_t at, size_t size) {
    Floats x{};
    Values q;
    std::memcpy(x.data(), elements + at * sizeof(float), size * sizeof(float));
    const BFloat16 scale = encode_block(x, q);
    std::memcpy(wire + at / kBlock * sizeof(scale), &scale, sizeof(scale));
    std::memcpy(values + at, q.data(), size);
  });
  std::fill(wire + scales, values, std::byte{0});
}

void decode_blocks(const std::byte* wire, size_t count, std::byte* elements) {
  const std::byte* const values = wire + align_up(scales_bytes(count));
  for_each_block(count, [&](size_t at, size_t size) {
    Values q{};
    BFloat16 scale;
    Floats x;
    std::memcpy(&scale, wire + at / kBlock * sizeof(scale), sizeof(scale));
    std::memcpy(q.data(), values + at, size);
    for (size_t i = 0; i < kBlock; ++i)
      x[i] = static_cast<float>(q[i]) * widen(scale);
    std::memcpy(elements + at * sizeof(float), x.data(), size * sizeof(float));
  });
}

void encode_floats(Codec codec, const std::byte* elements, size_t count, std::byte* wire) {
  if (codec == Codec::kBFloat16)
    encode_halves<BFloat16>(elements, count, wire);
  else if (codec == Codec::kFloat16)
    encode_halves<Float16>(elements, count, wire);
  else
    encode_blocks(elements, count, wire);
}

void decode_floats(Codec codec, const std::byte* wire, size_t count, std::byte* elements) {
  if (codec == Codec::kBFloat16)
    decode_halves<BFloat16>(wire, count, elements);
  else if (codec == Codec::kFloat16)
    decode_halves<Float16>(wire, count, elements);
  else
    decode_blocks(wire, count, elements);
}

bool sizes_fit(Codec codec, size_t elements, size_t wire) {
  if (codec == Codec::kRaw)
    return elements == wire;
  return elements % sizeof(float) == 0 &&
         wire == codec_bytes(codec, DType::kFloat32, elements / sizeof(float));
}

} // namespace

bool codec_fits(Codec codec, DType dtype) {
  return codec == Codec::kRaw || dtype == DType::kFloat32;
}

uint64_t codec_bytes(Codec codec, DType dtype, uint64_t elements) {
  switch (codec) {
  case Codec::kRaw:
    return elements * dtype_bytes(dtype);
  case Codec::kBFloat16:
  case Codec::kFloat16:
    return elements * 2;
  case Codec::kInt8Block:
    return align_up((elements + kBlock - 1) / kBlock * 2) + elements;
  }
  return 0;
}

bool encode(Codec codec, ByteView elements, MutableByteView wire) {
  if (!sizes_fit(codec, elements.size(), wire.size()))
    return false;
  if (codec != Codec::kRaw)
    encode_floats(codec, elements.data(), elements.size() / sizeof(float), wire.data());
  else if (!elements.empty())
    std::memcpy(wire.data(), elements.data(), elements.size());
  return true;
}

bool decode(Codec codec, ByteView wire, MutableByteView elements) {
  if (!sizes_fit(codec, elements.size(), wire.size()))
    return false;
  if (codec != Codec::kRaw)
    decode_floats(codec, wire.data(), elements.size() / sizeof(float), elements.data());
  else if (!wire.empty())
    std::memcpy(elements.data(), wire.data(), wire.size());
  return true;
}

} // namespace lah::codecs
