#include "rpc/coded_tensors.hpp"

namespace lah::rpc {

TensorMeta with_codec(TensorMeta tensor, Codec codec) {
  if (codecs::codec_fits(codec, tensor.dtype)) {
    tensor.codec = codec;
    tensor.wire_bytes =
        codecs::codec_bytes(codec, tensor.dtype, tensor.wire_bytes / dtype_bytes(tensor.dtype));
  }
  return tensor;
}

bool encode_tensors(OutgoingCall& call, ByteAllocator& allocator) {
  const std::vector<TensorMeta>& tensors = call.header.tensors;
  uint64_t total = 0;
  for (const TensorMeta& tensor : tensors)
    total += tensor.codec == Codec::kRaw ? 0 : align_up(tensor.wire_bytes);
  if (total == 0)
    return true;
  struct Kept {
    SharedBytes encoded;
    std::shared_ptr<const void> lent; // the tensors that stay raw
  };
  auto kept = std::make_shared<Kept>(Kept{allocator.allocate(total), std::move(call.keep)});
  if (!kept->encoded)
    return false;
  MutableByteView room(kept->encoded.get(), total);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].codec == Codec::kRaw)
      continue;
    const MutableByteView wire = room.first(tensors[i].wire_bytes);
    codecs::encode(tensors[i].codec, call.tensors[i], wire);
    call.tensors[i] = wire;
    room = room.subspan(align_up(wire.size()));
  }
  call.keep = std::move(kept);
  return true;
}

} // namespace lah::rpc
