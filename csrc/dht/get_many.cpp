#include "dht/get_many.hpp"

#include <algorithm>

namespace lah::dht {

GetManyOperation::GetManyOperation(std::vector<Id> keys, const MakeGet& make_get, Done done)
    : keys_(std::move(keys)), distinct_(keys_), done_(std::move(done)) {
  std::sort(distinct_.begin(), distinct_.end());
  distinct_.erase(std::unique(distinct_.begin(), distinct_.end()), distinct_.end());
  results_.resize(distinct_.size());
  std::vector<std::unique_ptr<Operation>> gets;
  gets.reserve(distinct_.size());
  for (size_t i = 0; i < distinct_.size(); ++i)
    gets.push_back(
        make_get(distinct_[i], [this, i](GetResult result) { results_[i] = std::move(result); }));
  set_parts(std::move(gets));
}

void GetManyOperation::on_completed() {
  if (keys_ == distinct_) {
    done_(std::move(results_));
    return;
  }
  std::vector<GetResult> results;
  results.reserve(keys_.size());
  for (const Id& key : keys_) {
    const auto at = std::lower_bound(distinct_.begin(), distinct_.end(), key);
    results.push_back(results_[static_cast<size_t>(at - distinct_.begin())]);
  }
  done_(std::move(results));
}

} // namespace lah::dht
