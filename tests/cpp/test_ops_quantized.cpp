// dispatch_quantized and dequantize on the CPU: every row is its token within what its scale
// allows, any split gives the same bits, and broken plans touch nothing outside.
#include "quantized_fixture.hpp"

namespace lah::ops {
namespace {

template <class scalar> struct OpsQuantized : testing::Test {};
TYPED_TEST_SUITE(OpsQuantized, RowTypes);

struct Quantization {
  Guarded<uint8_t> rows;
  Guarded<float> scale;
  Guarded<int32_t> source;
};

template <class scalar>
Quantization run_dispatch(const PlanCase& plan, const QuantizedLayout& layout,
                          const Guarded<scalar>& x, Split split, int before) {
  Quantization out{Guarded<uint8_t>(plan.rows * layout.row_bytes(), before),
                   Guarded<float>(plan.rows * layout.blocks, before), Guarded<int32_t>(plan.rows)};
  std::fill(out.source.begin(), out.source.end(), -1);
  const DispatchQuantizedArgs args{plan.plan(),      x.data(),         layout.hidden,
                                   layout.block,     layout.blocks,    out.rows.data(),
                                   out.scale.data(), out.source.data()};
  over(split, plan.tokens, [&](auto begin, auto end) {
    cpu::dispatch_quantized(args, kScalar<scalar>, layout.quantized, begin, end);
  });
  over(split, plan.rows, [&](auto begin, auto end) {
    cpu::clear_unowned(args.rows, args.source, layout.row_bytes(), begin, end);
    cpu::clear_unowned(args.scale, args.source, layout.scale_bytes(), begin, end);
  });
  return out;
}

Guarded<double> run_dequantize(const QuantizedLayout& layout, const Quantization& in, Split split,
                               int before) {
  const int64_t count = in.source.size();
  Guarded<double> out(count * layout.hidden, before);
  const DequantizeArgs args{in.rows.data(), in.scale.data(), count,     layout.hidden,
                            layout.block,   layout.blocks,   out.data()};
  over(split, count, [&](auto begin, auto end) {
    cpu::dequantize(args, Scalar::f64, layout.quantized, begin, end);
  });
  return out;
}

// How far a value may be from x: half of a unit of the code, and a few roundings to float.
double error_bound(Quantized quantized, double x, double scale) {
  const double magnitude = std::abs(x);
  const double unit = quantized == Quantized::int8   ? scale / 2
                      : quantized == Quantized::e4m3 ? std::max(magnitude / 16, scale / 1024)
                                                     : magnitude * 0x1p-8;
  return unit * (1 + 0x1p-14) + 0x1p-133; // the least number of bfloat16
}

template <class scalar>
void check_token(const QuantizedLayout& layout, const scalar* x, const float* scale,
                 const double* got) {
  for (int64_t h = 0; h < layout.hidden; ++h) {
    const double value = static_cast<float>(wide(x[h]));
    const float of_block = layout.blocks == 0 ? 1.0f : scale[layout.block_of(h)];
    if (layout.blocks == 0 ? std::isnan(value) : std::isnan(of_block))
      ASSERT_TRUE(std::isnan(got[h])) << "element " << h;
    else if (std::isinf(value) || (layout.blocks == 0 && std::isinf(got[h])))
      ASSERT_TRUE(layout.blocks == 0 && std::isinf(got[h]) && std::abs(value) > 3.38e38) << h;
    else
      ASSERT_LE(std::abs(got[h] - value), error_bound(layout.quantized, value, of_block))
          << "element " << h << " is " << got[h] << ", was " << value;
  }
}

// The scale of a block is NaN if and only if the block holds a NaN or an infinity, and 0 if and
// only if all of it is.
template <class scalar>
void check_scales(const QuantizedLayout& layout, const scalar* x, const float* scale) {
  for (int64_t b = 0; b < layout.blocks; ++b) {
    double largest = 0;
    bool finite = true;
    for (int64_t h = b * layout.block; h < std::min(layout.hidden, (b + 1) * layout.block); ++h) {
      const double value = std::abs(static_cast<double>(static_cast<float>(wide(x[h]))));
      finite = finite && std::isfinite(value);
      largest = std::max(largest, value);
    }
    ASSERT_EQ(std::isnan(scale[b]), !finite) << "block " << b;
    ASSERT_EQ(finite && scale[b] > 0, finite && largest > 0) << "block " << b;
  }
}

TYPED_TEST(OpsQuantized, EveryRowIsItsTokenOrZeros) {
  Random random(1);
  for (const int64_t tokens : kTokenCounts)
    for (const int64_t width : kWidths) {
      const PlanCase plan = make_plan(random, tokens, random.any_of<int64_t>({1, 2, 8, 32}), 33,
                                      random.any_of<int64_t>({1, 8}), 0, random.chance(0.5));
      const QuantizedLayout layout(random, width);
      SCOPED_TRACE(testing::Message()
                   << tokens << " tokens, width " << width << ", block " << layout.block << ", to "
                   << static_cast<int>(layout.quantized));
      Guarded<TypeParam> x(tokens * width);
      fill_tokens(random, x, width);
      const Quantization got = run_dispatch(plan, layout, x, Split::whole, kBefore);
      const Guarded<double> back = run_dequantize(layout, got, Split::whole, kBefore);
      const std::vector<int64_t> owner = plan.owners();
      for (int64_t row = 0; row < plan.rows; ++row) {
        const int64_t i = owner[static_cast<size_t>(row)];
        ASSERT_EQ(got.source[row], i);
        const double* values = back.data() + row * width;
        const float* scale = got.scale.data() + row * layout.blocks;
        if (i < 0) {
          ASSERT_TRUE(std::all_of(values, values + width, [](double v) { return v == 0; }));
          ASSERT_TRUE(std::all_of(scale, scale + layout.blocks, [](float s) { return s == 0; }));
          continue;
        }
        const TypeParam* token = x.data() + i / plan.choices * width;
        check_token(layout, token, scale, values);
        check_scales(layout, token, scale);
        if (testing::Test::HasFatalFailure())
          return;
      }
    }
}

TYPED_TEST(OpsQuantized, SameBitsForAnySplit) {
  Random random(2);
  for (int i = 0; i < 6; ++i) {
    const PlanCase plan = make_plan(random, 130, 4, 31, 8, 3, false);
    const QuantizedLayout layout(random, 200);
    Guarded<TypeParam> x(130 * 200);
    fill_tokens(random, x, 200);
    expect_same_bits_for_any_split([&](Split split, int before) {
      const Quantization out = run_dispatch(plan, layout, x, split, before);
      Bits bits = bits_of(out.rows);
      for (const Bits& more : {bits_of(out.scale), bits_of(out.source),
                               bits_of(run_dequantize(layout, out, split, before))})
        bits.insert(bits.end(), more.begin(), more.end());
      return bits;
    });
  }
}

TEST(OpsQuantizedPlan, BrokenPlansTouchNothingOutside) {
  Random random(3);
  for (int i = 0; i < 60; ++i) {
    const PlanCase plan = make_broken_plan(random, 33, 4, 32, random.chance(0.5));
    const QuantizedLayout layout(random, 33);
    Guarded<float> x(33 * 33);
    fill_tokens(random, x, 33);
    const Quantization got = run_dispatch(plan, layout, x, Split::whole, kBefore);
    const std::vector<int64_t> owner = plan.owners();
    for (int64_t row = 0; row < plan.rows; ++row)
      ASSERT_EQ(got.source[row], owner[static_cast<size_t>(row)]) << "row " << row;
  }
}

} // namespace
} // namespace lah::ops
