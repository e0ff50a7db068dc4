// Any bytes of any size as an encoded tensor: decoded into exactly its elements, or refused. What
// was decoded can be encoded again.
#include <algorithm>
#include <cstdlib>

#include "codecs/codec.hpp"

using lah::codecs::Codec;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3)
    return 0;
  const auto codec = static_cast<Codec>(data[0] % (lah::codecs::kCodecs + 1));
  const size_t asked = data[1] + size_t{data[2]} * 256; // bytes of elements; mostly wrong ones
  const lah::ByteView wire = std::as_bytes(std::span(data + 3, size - 3));
  const auto fits = [&](size_t elements) {
    return lah::codecs::codec_bytes(codec, lah::DType::kFloat32, elements) == wire.size();
  };
  size_t bytes = asked;
  for (size_t elements = wire.size() / 4; elements <= wire.size() && data[0] >= 128; ++elements)
    if (fits(elements))
      bytes = elements * 4; // the right ones
  lah::Buffer out(bytes, std::byte{7});
  const bool good = lah::codecs::decode(codec, wire, out);
  if (good != (codec == Codec::kRaw ? bytes == wire.size() : bytes % 4 == 0 && fits(bytes / 4)))
    std::abort();
  lah::Buffer again(wire.size());
  if (good && !lah::codecs::encode(codec, out, again))
    std::abort();
  return 0;
}
