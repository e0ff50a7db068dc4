// Any bytes as the payload of a level record.
#include <cstdlib>

#include "allocation_budget.hpp"
#include "dht/level_declaration.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lah::dht;
  const lah::ByteView bytes = std::as_bytes(std::span(data, size));
  const auto level = [&] {
    const lah::fuzz::AllocationBudget budget(size);
    return decode_level(bytes);
  }();
  if (!level)
    return 0;
  if (level->parts == 0 || level->parts > lah::Limits::kLevelParts || level->groups.empty())
    std::abort();
  for (const LevelGroup& group : level->groups)
    for (size_t i = 0; i < group.next.size(); ++i)
      if (group.next[i].first > group.next[i].last ||
          group.next[i].last >= lah::Limits::kGridExperts ||
          (i > 0 && group.next[i - 1].last >= group.next[i].first))
        std::abort(); // the search looks coordinates up by bisection
  return 0;
}
