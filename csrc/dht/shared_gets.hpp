#pragma once

#include <map>
#include <set>

#include "dht/operation.hpp"

namespace lah::dht {

// Gets of the same key and consistency that are open at the same time share one GetOperation.
// Who joins one may be told what was true when it began, one lookup ago; nobody joins from before
// this node's own store of the key. Each caller keeps its deadline: the operation goes on until it
// is finished or nobody waits for it.
class SharedGets {
public:
  using Done = GetOperation::Done;
  using Key = std::pair<Id, Consistency>;
  using Ticket = uint64_t; // of one operation

  // True, and `done` is taken, if an open operation answers this get too.
  bool join(const Key& key, Time deadline, Done& done);
  // A new operation, which the caller makes: it tells finished() when it completes.
  Ticket open(const Key& key, Time deadline, Done done);
  void set_operation(Ticket ticket, const GetOperation& get) { open_.at(ticket).get = &get; }
  void finished(Ticket ticket, GetResult result);
  // Nobody joins from now on what is open for this key.
  void close(const Id& key);

  // Tells the callers whose deadline has passed what there is so far. The operations nobody else
  // waits for are returned, to be ended: their last callers are told when they complete.
  std::vector<OpId> expire(Time now, const OperationHost& host);
  Time next_deadline() const { return deadlines_.empty() ? kNever : deadlines_.begin()->first; }

private:
  struct Caller {
    Time deadline;
    Done done;
  };
  struct Open {
    Key key;
    const GetOperation* get = nullptr;
    std::vector<Caller> callers = {};
  };

  void add_caller(Ticket ticket, Time deadline, Done done);
  void forget_joinable(const Key& key, Ticket ticket);

  std::map<Ticket, Open> open_;
  std::map<Key, Ticket> joinable_;
  std::set<std::pair<Time, Ticket>> deadlines_;
  Ticket last_ticket_ = 0;
};

} // namespace lah::dht
