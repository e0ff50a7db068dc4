// What the tests of quantized rows share: a random layout of rows, scales and tokens.
#pragma once

#include "ops_fixture.hpp"

namespace lah::ops {

struct QuantizedLayout {
  Quantized quantized;
  int64_t hidden, block, blocks;

  QuantizedLayout(Random& random, int64_t hidden_)
      : quantized(random.any_of({Quantized::int8, Quantized::e4m3, Quantized::bf16})),
        hidden(hidden_), block(random.any_of<int64_t>({0, 16, 48, 128})),
        blocks(block == 0 ? 1 : (hidden + block - 1) / block) {
    if (quantized == Quantized::bf16)
      block = blocks = 0;
    if (block == 0)
      block = hidden;
  }
  int64_t element_bytes() const { return quantized == Quantized::bf16 ? 2 : 1; }
  int64_t row_bytes() const { return hidden * element_bytes(); }
  int64_t scale_bytes() const { return blocks * static_cast<int64_t>(sizeof(float)); }
  int64_t block_of(int64_t element) const { return block == 0 ? 0 : element / block; }
};

// Tokens of every magnitude, some of zeros, some with a NaN or an infinity.
template <class Array> void fill_tokens(Random& random, Array& x, int64_t hidden) {
  using scalar = std::remove_cvref_t<decltype(x[0])>;
  for (int64_t i = 0; i < x.size(); i += hidden) {
    const double factor = random.any_of({1.0, 1.0, 0.0, 1e-3, 1e4, 1e-38, 1e-42, 1e38});
    for (int64_t h = 0; h < hidden; ++h)
      x[i + h] = narrow<scalar>(static_cast<sum_t<scalar>>(factor * random.normal()));
    if (random.chance(0.1))
      x[i + random.below(hidden)] =
          narrow<scalar>(static_cast<sum_t<scalar>>(random.any_of({kNan, kInf, -kInf})));
  }
}

} // namespace lah::ops
