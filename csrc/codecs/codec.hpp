// How a tensor's elements travel. The lossy codecs apply to float32 tensors only; everything else
// goes raw. All are deterministic, and the same bits on every machine.
//
// What comes back for an element x:
//   kRaw        x itself, any dtype.
//   kBFloat16   the nearest bfloat16, ties to even: off by at most 2^-8 |x|, or 2^-134 if that is
//               more.
//   kFloat16    the nearest float16, ties to even: off by at most 2^-11 |x|, or 2^-25 where
//               |x| < 2^-14. From 65520 on infinity: what is out of range is seen to be.
//   kInt8Block  off by at most max|x| / 252 + 2^-133, the maximum over its block of 64.
// NaN stays NaN and an infinity itself; with kInt8Block either makes its whole block NaN. Values
// beyond 3.38e38 may become infinite with any lossy codec.
#pragma once

#include "base/bytes.hpp"
#include "base/dtype.hpp"

namespace lah::codecs {

enum class Codec : uint8_t {
  kRaw = 0,
  kBFloat16 = 1,  // 2 bytes an element
  kFloat16 = 2,   // 2 bytes an element
  kInt8Block = 3, // 1 byte an element, and a bfloat16 scale for every kBlock of them
};
inline constexpr uint64_t kCodecs = 3; // the highest
inline constexpr uint64_t kBlock = 64; // elements under one scale

bool codec_fits(Codec codec, DType dtype);

// Bytes on the wire. kInt8Block: all scales, padded to a kTensorAlign boundary, then the values.
uint64_t codec_bytes(Codec codec, DType dtype, uint64_t elements);

// Both write every byte of their last argument, or none and return false if the sizes do not fit
// each other. Any bytes can be decoded. Neither end need be aligned.
bool encode(Codec codec, ByteView elements, MutableByteView wire);
bool decode(Codec codec, ByteView wire, MutableByteView elements);

} // namespace lah::codecs
