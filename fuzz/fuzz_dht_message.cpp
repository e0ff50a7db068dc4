// Any bytes as the inside of a sealed packet: decoded within limits or refused, and what was
// decoded survives being written and read again.
#include <cstdlib>

#include "allocation_budget.hpp"
#include "dht/message.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lah::dht;
  const auto decoded = [&] {
    const lah::fuzz::AllocationBudget budget(size);
    return decode(std::as_bytes(std::span(data, size)));
  }();
  if (!decoded)
    return 0;
  lah::Buffer once;
  if (const auto* request = std::get_if<RequestMessage>(&*decoded))
    once = encode(request->header, request->body);
  else if (const auto* reply = std::get_if<ReplyMessage>(&*decoded))
    once = encode(reply->header, reply->body);
  else
    return 0;
  const auto again = decode(once);
  if (!again || again->index() != decoded->index())
    std::abort();
  return 0;
}
