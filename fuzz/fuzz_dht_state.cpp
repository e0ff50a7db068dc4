// Any bytes as a node's state file, with a checksum that is right half of the time: refused, or
// within limits and the same when written and read again.
#include <cstdlib>

#include "allocation_budget.hpp"
#include "base/limits.hpp"
#include "dht/node_state.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lah;
  Buffer file;
  if (size > 0 && data[0] % 2 == 0) {
    const ByteView body = std::as_bytes(std::span(data + 1, size - 1));
    file = dht::encode_state({});
    file.resize(9); // magic and version
    append(file, as_bytes(crypto::sha256({body})));
    append(file, body);
  } else {
    const ByteView raw = std::as_bytes(std::span(data, size));
    file.assign(raw.begin(), raw.end());
  }
  const auto state = [&] {
    const fuzz::AllocationBudget budget(file.size());
    return dht::decode_state(file);
  }();
  if (!state)
    return 0;
  if (state->contacts.size() > Limits::kSavedContacts ||
      state->records.size() > Limits::kSavedRecords)
    std::abort();
  const auto again = dht::decode_state(dht::encode_state(*state));
  if (!again || again->contacts != state->contacts || again->records != state->records ||
      again->identity_seed != state->identity_seed || again->seq != state->seq)
    std::abort();
  return 0;
}
