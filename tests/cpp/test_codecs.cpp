// What a codec promises in codec.hpp, over random values of every magnitude and the special ones.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "batching/byte_pool.hpp"
#include "codecs/codec.hpp"
#include "rpc/coded_tensors.hpp"

namespace lah::codecs {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint32_t kSeed = 4;

using Floats = std::vector<float>;

Buffer encoded(Codec codec, const Floats& x) {
  Buffer wire(codec_bytes(codec, DType::kFloat32, x.size()), std::byte{0xee});
  EXPECT_TRUE(encode(codec, std::as_bytes(std::span(x)), wire));
  return wire;
}

Floats decoded(Codec codec, const Buffer& wire, size_t count) {
  Floats y(count, 12345.0f);
  EXPECT_TRUE(decode(codec, wire, std::as_writable_bytes(std::span(y))));
  return y;
}

Floats through(Codec codec, const Floats& x) {
  return decoded(codec, encoded(codec, x), x.size());
}

double largest_of_block(const Floats& x, size_t i) {
  double largest = 0;
  const size_t begin = i / kBlock * kBlock;
  for (size_t j = begin; j < std::min(x.size(), begin + kBlock); ++j)
    largest = std::max(largest, std::abs(double{x[j]}));
  return largest;
}

// The bounds of codec.hpp.
double bound(Codec codec, const Floats& x, size_t i) {
  const double magnitude = std::abs(double{x[i]});
  if (codec == Codec::kBFloat16)
    return std::max(0x1p-8 * magnitude, 0x1p-134);
  if (codec == Codec::kFloat16)
    return magnitude < 0x1p-14 ? 0x1p-25 : 0x1p-11 * magnitude;
  return codec == Codec::kInt8Block ? largest_of_block(x, i) / 252 + 0x1p-133 : 0;
}

void expect_within_bound(Codec codec, const Floats& x) {
  const Floats y = through(codec, x);
  for (size_t i = 0; i < x.size(); ++i)
    ASSERT_LE(std::abs(double{y[i]} - double{x[i]}), bound(codec, x, i))
        << "element " << i << " of " << x.size() << ": " << x[i] << " became " << y[i];
}

// Numbers of any exponent in [low, high).
struct Numbers {
  explicit Numbers(uint32_t seed) : random(seed) {}
  float operator()(int low, int high) {
    const double fraction = std::uniform_real_distribution<double>(-2, 2)(random);
    return static_cast<float>(
        std::ldexp(fraction, std::uniform_int_distribution<int>(low, high - 1)(random)));
  }
  Floats some(size_t count, int low, int high) {
    Floats x(count);
    for (float& value : x)
      value = (*this)(low, high);
    return x;
  }
  std::mt19937 random;
};

struct CodecTest : testing::TestWithParam<Codec> {
  Codec codec() const { return GetParam(); }
  // Exponents that the codec does not turn into infinities.
  int high() const { return codec() == Codec::kFloat16 ? 15 : 126; }
};

TEST_P(CodecTest, StaysWithinItsBoundForEveryMagnitude) {
  Numbers numbers(kSeed);
  for (int low = -152; low < high(); low += 3)
    expect_within_bound(codec(), numbers.some(512, low, std::min(low + 12, high())));
  expect_within_bound(codec(), numbers.some(100'000, -150, high()));
}

TEST_P(CodecTest, StaysWithinItsBoundForEverySize) {
  Numbers numbers(kSeed);
  for (size_t count = 0; count <= 4 * kBlock + 1; ++count)
    expect_within_bound(codec(), numbers.some(count, -6, 6));
}

TEST_P(CodecTest, NanStaysNanAndInfinityIsNeverFinite) {
  Numbers numbers(kSeed);
  for (const float special : {kNan, -kNan, kInf, -kInf, std::bit_cast<float>(0x7f800001u)}) {
    Floats x = numbers.some(200, -3, 3);
    x[70] = special;
    const Floats y = through(codec(), x);
    if (codec() == Codec::kInt8Block)
      EXPECT_TRUE(std::isnan(y[64]) && std::isnan(y[70]) && std::isnan(y[127]));
    else
      EXPECT_TRUE(std::isnan(special) ? std::isnan(y[70]) : y[70] == special);
    for (size_t i : {0, 63, 128, 199}) // blocks beside it
      EXPECT_TRUE(std::isfinite(y[i]));
  }
}

TEST_P(CodecTest, ZerosAndSignsStay) {
  const Floats y = through(codec(), {0.0f, -0.0f, 1.0f, -1.0f, 0.0f});
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], 0.0f);
  EXPECT_NEAR(y[2], 1.0f, 0.004);
  EXPECT_EQ(y[3], -y[2]);
  EXPECT_EQ(through(codec(), Floats(kBlock, 0.0f)), Floats(kBlock, 0.0f));
}

TEST_P(CodecTest, SameBytesWhateverTheAlignmentAndWhatWasThereBefore) {
  const Floats x = Numbers(kSeed).some(1000, -20, 10);
  const Buffer wire = encoded(codec(), x); // into memory full of 0xee
  Buffer elements(x.size() * 4 + 1), shifted(wire.size() + 1);
  std::memcpy(elements.data() + 1, x.data(), x.size() * 4);
  ASSERT_TRUE(encode(codec(), ByteView(elements).subspan(1), MutableByteView(shifted).subspan(1)));
  EXPECT_EQ(Buffer(shifted.begin() + 1, shifted.end()), wire);
  ASSERT_TRUE(decode(codec(), ByteView(shifted).subspan(1), MutableByteView(elements).subspan(1)));
  const Floats y = decoded(codec(), wire, x.size());
  EXPECT_EQ(std::memcmp(elements.data() + 1, y.data(), y.size() * 4), 0);
}

TEST_P(CodecTest, SizesThatDoNotFitAreRefusedAndNothingIsWritten) {
  const Floats x(100, 1.0f);
  const Buffer wire = encoded(codec(), x);
  for (const size_t size : {size_t{0}, size_t{4}, size_t{396}, size_t{399}, size_t{404}}) {
    Buffer out(size, std::byte{7});
    EXPECT_FALSE(decode(codec(), wire, out));
    EXPECT_EQ(out, Buffer(size, std::byte{7}));
  }
  Buffer small(wire.size() - 1, std::byte{7});
  EXPECT_FALSE(encode(codec(), std::as_bytes(std::span(x)), small));
  EXPECT_EQ(small, Buffer(small.size(), std::byte{7}));
}

TEST_P(CodecTest, DecodingTwiceIsEncodingOnce) { // a tensor that passes on keeps its values
  Numbers numbers(kSeed);
  const Floats once = through(codec(), numbers.some(4096, -10, 10));
  if (codec() == Codec::kInt8Block)
    expect_within_bound(codec(), once);
  else
    EXPECT_EQ(through(codec(), once), once);
}

std::string codec_name(const testing::TestParamInfo<Codec>& info) {
  constexpr std::array kNames{"Raw", "BFloat16", "Float16", "Int8Block"};
  return kNames[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Codecs, CodecTest,
                         testing::Values(Codec::kRaw, Codec::kBFloat16, Codec::kFloat16,
                                         Codec::kInt8Block),
                         codec_name);

TEST(Codec, BytesOnTheWire) {
  EXPECT_EQ(codec_bytes(Codec::kRaw, DType::kInt64, 10), 80u);
  EXPECT_EQ(codec_bytes(Codec::kBFloat16, DType::kFloat32, 10), 20u);
  EXPECT_EQ(codec_bytes(Codec::kFloat16, DType::kFloat32, 10), 20u);
  EXPECT_EQ(codec_bytes(Codec::kInt8Block, DType::kFloat32, 65), 64u + 65);
  EXPECT_EQ(codec_bytes(Codec::kInt8Block, DType::kFloat32, 1 << 20), (1u << 15) + (1u << 20));
  for (const Codec codec : {Codec::kBFloat16, Codec::kFloat16, Codec::kInt8Block}) {
    EXPECT_EQ(codec_bytes(codec, DType::kFloat32, 0), 0u);
    EXPECT_TRUE(codec_fits(codec, DType::kFloat32));
    EXPECT_FALSE(codec_fits(codec, DType::kInt64));
    EXPECT_FALSE(codec_fits(codec, DType::kFloat16));
  }
  EXPECT_TRUE(codec_fits(Codec::kRaw, DType::kBool));
}

TEST(Codec, EveryFloat16ComesBackAsItself) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    Buffer wire(2);
    std::memcpy(wire.data(), &half, 2);
    const float value = decoded(Codec::kFloat16, wire, 1)[0];
    const int exponent = half >> 10 & 31;
    const double fraction = half & 1023;
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(value));
      continue;
    }
    const double magnitude = exponent == 31  ? double{kInf}
                             : exponent == 0 ? std::ldexp(fraction, -24)
                                             : std::ldexp(1024 + fraction, exponent - 25);
    ASSERT_EQ(double{value}, bits >> 15 ? -magnitude : magnitude) << bits;
    ASSERT_EQ(encoded(Codec::kFloat16, {value}), wire) << bits;
  }
}

TEST(Codec, HalvesRoundTiesToEvenAndOverflowToInfinity) {
  const auto one = [](Codec codec, float x) { return through(codec, {x})[0]; };
  EXPECT_EQ(one(Codec::kBFloat16, 1 + 0x1p-8f), 1.0f);
  EXPECT_EQ(one(Codec::kBFloat16, 1 + 3 * 0x1p-8f), 1 + 0x1p-6f);
  EXPECT_EQ(one(Codec::kBFloat16, 1 + 0x1.02p-8f), 1 + 0x1p-7f);
  EXPECT_EQ(one(Codec::kBFloat16, std::numeric_limits<float>::max()), kInf);
  EXPECT_EQ(one(Codec::kFloat16, 1 + 0x1p-11f), 1.0f);
  EXPECT_EQ(one(Codec::kFloat16, 1 + 3 * 0x1p-11f), 1 + 0x1p-9f);
  EXPECT_EQ(one(Codec::kFloat16, 65519.996f), 65504.0f);
  EXPECT_EQ(one(Codec::kFloat16, 65520.0f), kInf);
  EXPECT_EQ(one(Codec::kFloat16, -1e30f), -kInf);
  EXPECT_EQ(one(Codec::kFloat16, 0x1p-25f), 0.0f);
  EXPECT_EQ(one(Codec::kFloat16, 0x1.8p-25f), 0x1p-24f);
}

TEST(Codec, Int8NeverClipsTheLargestOfABlock) {
  Numbers numbers(kSeed);
  for (int i = 0; i < 20'000; ++i) {
    const float largest = numbers(-140, 126);
    expect_within_bound(Codec::kInt8Block, {largest, -largest, largest / 3, 0});
  }
}

TEST(Codec, Int8KeepsGradientsFarBelowFloat16) {
  const Floats x{3e-9f, -1e-9f, 2e-9f};
  const Floats y = through(Codec::kInt8Block, x);
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_NEAR(y[i], x[i], 3e-9f / 252);
}

TEST(Codec, Int8TakesNearlyTheWholeRangeOfFloats) {
  for (const float large : {1e30f, 3.38e38f}) {
    const Floats y = through(Codec::kInt8Block, {large, -large, large / 2});
    EXPECT_NEAR(y[0] / large, 1, 0.005);
    EXPECT_NEAR(y[1] / large, -1, 0.005);
    EXPECT_NEAR(y[2] / large, 0.5, 0.005);
  }
}

TEST(CodedTensors, OnlyTheLossyTensorsOfACallAreEncodedAndKept) {
  batching::BytePool pool(1 << 20);
  const Floats x = Numbers(kSeed).some(100, -3, 3);
  const std::vector<int64_t> ids(50, 7);
  auto lent = std::make_shared<int>(0);
  rpc::OutgoingCall call;
  call.keep = lent;
  call.tensors = {std::as_bytes(std::span(x)), std::as_bytes(std::span(ids)),
                  std::as_bytes(std::span(x))};
  const rpc::TensorMeta floats{DType::kFloat32, Codec::kRaw, {100}, 400};
  const rpc::TensorMeta integers{DType::kInt64, Codec::kRaw, {50}, 400};
  call.header.tensors = {rpc::with_codec(floats, Codec::kInt8Block),
                         rpc::with_codec(integers, Codec::kInt8Block),
                         rpc::with_codec(floats, Codec::kBFloat16)};
  EXPECT_EQ(call.header.tensors[1], integers);
  ASSERT_TRUE(rpc::encode_tensors(call, pool));
  const auto bytes_of = [&](size_t i) {
    return Buffer(call.tensors[i].begin(), call.tensors[i].end());
  };
  EXPECT_EQ(bytes_of(0), encoded(Codec::kInt8Block, x));
  EXPECT_EQ(call.tensors[1].data(), std::as_bytes(std::span(ids)).data());
  EXPECT_EQ(bytes_of(2), encoded(Codec::kBFloat16, x));
  EXPECT_EQ(lent.use_count(), 2); // the tensor that is lent is still needed
  call.keep.reset();
  EXPECT_EQ(lent.use_count(), 1);
}

TEST(CodedTensors, CallsWithoutMemoryForTheirTensorsSaySo) {
  struct Nothing final : ByteAllocator {
    SharedBytes allocate(size_t) override { return nullptr; }
  } nothing;
  const Floats x(4, 1.0f);
  rpc::OutgoingCall call;
  call.tensors = {std::as_bytes(std::span(x))};
  call.header.tensors = {{DType::kFloat32, Codec::kRaw, {4}, 16}};
  EXPECT_TRUE(rpc::encode_tensors(call, nothing)); // nothing to encode
  call.header.tensors[0] = rpc::with_codec(call.header.tensors[0], Codec::kFloat16);
  EXPECT_FALSE(rpc::encode_tensors(call, nothing));
}

} // namespace
} // namespace lah::codecs
