#pragma once

#include "dht/operation_batch.hpp"

namespace lah::dht {

// Stores of many records. The results are those of as many StoreOperations.
class StoreManyOperation final : public OperationBatch {
public:
  using Done = std::function<void(std::vector<StoreResult>)>; // in the order of the records

  StoreManyOperation(std::vector<Record> records, const Id& own, Done done);
  bool insists() const override { return true; }

protected:
  void on_completed() override { done_(std::move(results_)); }

private:
  std::vector<StoreResult> results_;
  Done done_;
};

} // namespace lah::dht
