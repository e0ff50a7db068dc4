#include "dht/shared_gets.hpp"

#include <algorithm>

namespace lah::dht {

bool SharedGets::join(const Key& key, Time deadline, Done& done) {
  const auto found = joinable_.find(key);
  if (found == joinable_.end())
    return false;
  add_caller(found->second, deadline, std::move(done));
  return true;
}

SharedGets::Ticket SharedGets::open(const Key& key, Time deadline, Done done) {
  const Ticket ticket = ++last_ticket_;
  open_.emplace(ticket, Open{key});
  joinable_[key] = ticket;
  add_caller(ticket, deadline, std::move(done));
  return ticket;
}

void SharedGets::add_caller(Ticket ticket, Time deadline, Done done) {
  open_.at(ticket).callers.push_back({deadline, std::move(done)});
  if (deadline != kNever)
    deadlines_.insert({deadline, ticket});
}

void SharedGets::forget_joinable(const Key& key, Ticket ticket) {
  if (const auto found = joinable_.find(key); found != joinable_.end() && found->second == ticket)
    joinable_.erase(found);
}

void SharedGets::finished(Ticket ticket, GetResult result) {
  const auto found = open_.find(ticket);
  Open open = std::move(found->second);
  open_.erase(found);
  forget_joinable(open.key, ticket);
  for (const Caller& caller : open.callers)
    deadlines_.erase({caller.deadline, ticket});
  for (size_t i = 0; i + 1 < open.callers.size(); ++i)
    open.callers[i].done(result);
  open.callers.back().done(std::move(result));
}

void SharedGets::close(const Id& key) {
  for (const Consistency consistency :
       {Consistency::kFirst, Consistency::kQuorum, Consistency::kAll})
    joinable_.erase({key, consistency});
}

std::vector<OpId> SharedGets::expire(Time now, const OperationHost& host) {
  std::vector<OpId> ended;
  std::vector<std::pair<Done, GetResult>> told;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const Ticket ticket = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    Open& open = open_.at(ticket);
    const auto late =
        std::stable_partition(open.callers.begin(), open.callers.end(),
                              [&](const Caller& caller) { return caller.deadline > now; });
    if (late == open.callers.begin()) {
      forget_joinable(open.key, ticket);
      ended.push_back(open.get->id);
      continue;
    }
    for (auto caller = late; caller != open.callers.end(); ++caller)
      told.emplace_back(std::move(caller->done), open.get->so_far(host));
    open.callers.erase(late, open.callers.end());
  }
  for (auto& [done, result] : told) // last: it may get again
    done(std::move(result));
  return ended;
}

} // namespace lah::dht
