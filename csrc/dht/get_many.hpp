#pragma once

#include "dht/operation_batch.hpp"

namespace lah::dht {

// Gets of many keys. The results are those of as many GetOperations.
class GetManyOperation final : public OperationBatch {
public:
  using Done = std::function<void(std::vector<GetResult>)>; // in the order of the keys
  // Makes the get of one key.
  using MakeGet = std::function<std::unique_ptr<Operation>(const Id&, GetOperation::Done)>;

  GetManyOperation(std::vector<Id> keys, const MakeGet& make_get, Done done);

protected:
  void on_completed() override;

private:
  std::vector<Id> keys_;
  std::vector<Id> distinct_;       // in order
  std::vector<GetResult> results_; // of distinct_
  Done done_;
};

} // namespace lah::dht
