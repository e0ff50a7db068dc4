// Tensors in the form they travel in.
#pragma once

#include "base/shared_bytes.hpp"
#include "rpc/client.hpp"

namespace lah::rpc {

// A raw tensor's description with a codec, if that is for its dtype; else as it is.
TensorMeta with_codec(TensorMeta tensor, Codec codec);

// Encodes each tensor of a call whose description names a lossy codec; the call then holds the
// memory. False if there is none to be had.
bool encode_tensors(OutgoingCall& call, ByteAllocator& allocator);

} // namespace lah::rpc
