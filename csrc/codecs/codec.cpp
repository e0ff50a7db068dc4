#include "codecs/codec.hpp"

namespace lah::codecs {

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

} // namespace lah::codecs
