// Any bytes as an expert-call header: decoded within limits or refused.
#include <cstdlib>

#include "rpc/message.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto message = lah::rpc::decode(std::as_bytes(std::span(data, size)));
  if (message && lah::rpc::encode(*message).size() > 2 * lah::Limits::kHeaderBytes)
    std::abort();
  return 0;
}
