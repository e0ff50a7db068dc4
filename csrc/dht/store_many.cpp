#include "dht/store_many.hpp"

#include <algorithm>
#include <numeric>

namespace lah::dht {

StoreManyOperation::StoreManyOperation(std::vector<Record> records, const Id& own, Done done)
    : results_(records.size()), done_(std::move(done)) {
  std::vector<size_t> order(records.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return records[a].key < records[b].key; });
  std::vector<std::unique_ptr<Operation>> stores;
  stores.reserve(records.size());
  for (const size_t at : order)
    stores.push_back(std::make_unique<StoreOperation>(
        std::move(records[at]), own,
        [this, at](const StoreResult& result) { results_[at] = result; }));
  set_parts(std::move(stores));
}

} // namespace lah::dht
