// Any bytes as the payload of a declaration or of a server record, and as a uid.
#include <algorithm>
#include <cstdlib>

#include "allocation_budget.hpp"
#include "dht/declaration.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lah::dht;
  const lah::ByteView bytes = std::as_bytes(std::span(data, size));
  const auto within_budget = [&](auto decode) {
    const lah::fuzz::AllocationBudget budget(size);
    return decode(bytes);
  };
  if (const auto declaration = within_budget(decode_declaration))
    for (const DeclaredGroup& group : declaration->groups)
      for (size_t i = 0; i < group.experts.size(); ++i)
        if (group.experts[i].size() != group.depth ||
            (i > 0 && !(group.experts[i - 1] < group.experts[i])))
          std::abort(); // lookups rely on sorted, unique coordinates
  if (const auto server = within_budget(decode_server); server && server->addresses.empty())
    std::abort();
  if (const auto uid = parse_uid(lah::as_text(bytes));
      uid && format_uid(uid->prefix, uid->coordinates) != lah::as_text(bytes))
    std::abort(); // two spellings of one expert
  return 0;
}
