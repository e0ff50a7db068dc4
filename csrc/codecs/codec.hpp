// How a tensor's elements travel. The lossy codecs apply to float32 tensors only; everything else
// goes raw.
#pragma once

#include "base/bytes.hpp"
#include "base/dtype.hpp"

namespace lah::codecs {

enum class Codec : uint8_t {
  kRaw = 0,
  kBFloat16 = 1,  // 2 bytes an element
  kFloat16 = 2,   // 2 bytes an element
  kInt8Block = 3, // 1 byte an element, and a float16 scale for every kBlock of them
};
inline constexpr uint64_t kCodecs = 3; // the highest
inline constexpr uint64_t kBlock = 64; // elements under one scale

bool codec_fits(Codec codec, DType dtype);

// Bytes on the wire. kInt8Block: all scales, padded to a kTensorAlign boundary, then the values.
uint64_t codec_bytes(Codec codec, DType dtype, uint64_t elements);

} // namespace lah::codecs
