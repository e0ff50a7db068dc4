// The life of an operation: begun, perhaps parked until there is a way into the network, finished,
// told to its caller, and perhaps lingering for late answers.
#include <algorithm>

#include "dht/node.hpp"

namespace lah::dht {

void Node::begin(std::unique_ptr<Operation> operation, Time deadline) {
  operation->id = ++last_op_;
  operation->deadline = deadline;
  if (closing_ || open_operations() >= Limits::kOperations) {
    finished_.push_back(std::move(operation));
    return;
  }
  if (deadline != kNever)
    deadlines_.insert({deadline, operation->id});
  const bool way_in_expected = open_hellos_ > 0 || recalled_ > 0 || !bootstrap_.tried();
  if (operation->target() && table_.size() == 0 && !ready_ && !joining_ && way_in_expected)
    parked_.push_back(std::move(operation));
  else
    launch(std::move(operation));
}

void Node::launch(std::unique_ptr<Operation> operation) {
  const OpId id = operation->id;
  Operation& launched = *operations_.emplace(id, std::move(operation)).first->second;
  std::vector<Contact> near;
  if (const auto target = launched.target())
    near = closest(*target);
  launched.start(*this, near);
  retire_if_finished(id);
}

void Node::end(OpId id) {
  if (const auto found = operations_.find(id); found != operations_.end()) {
    retire(found);
    return;
  }
  const auto parked = std::find_if(parked_.begin(), parked_.end(),
                                   [&](const auto& operation) { return operation->id == id; });
  if (parked != parked_.end()) {
    finished_.push_back(std::move(*parked));
    parked_.erase(parked);
  }
}

void Node::with_operation(OpId id, const std::function<void(Operation&)>& act) {
  const auto found = operations_.find(id);
  if (found == operations_.end())
    return;
  act(*found->second);
  retire_if_finished(id);
}

void Node::retire_if_finished(OpId id) {
  const auto found = operations_.find(id);
  if (found == operations_.end())
    return;
  if (!found->second->told) {
    if (found->second->finished())
      retire(found);
  } else if (!found->second->lingers()) {
    operations_.erase(found);
    --lingering_;
  }
}

void Node::retire(Operations::iterator operation) {
  deadlines_.erase({operation->second->deadline, operation->first});
  finished_.push_back(std::move(operation->second));
  operations_.erase(operation);
}

void Node::settle() {
  while (!finished_.empty()) {
    for (auto& operation : std::exchange(finished_, {})) {
      operation->complete(*this);
      operation->told = true;
      if (closing_ || !operation->finished() || !operation->lingers() ||
          lingering_ >= Limits::kLingering)
        continue;
      ++lingering_;
      operations_.emplace(operation->id, std::move(operation));
    }
    subscriptions_.tell();
  }
  subscriptions_.tell();
}

void Node::abandon() {
  closing_ = true; // what callbacks start now ends at once
  tasks_.clear();
  subscriptions_.clear();
  for (auto& operation : std::exchange(parked_, {}))
    finished_.push_back(std::move(operation));
  for (auto& [id, operation] : std::exchange(operations_, {}))
    if (!operation->told)
      finished_.push_back(std::move(operation));
  lingering_ = 0;
  hello_.abandon();
  settle();
}

} // namespace lah::dht
