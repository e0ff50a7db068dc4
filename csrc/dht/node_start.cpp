#include <algorithm>

#include "dht/node.hpp"

namespace lah::dht {

void Node::start_get(Time now, WallMs wall, const Id& key, Time deadline, GetOperation::Done done,
                     Consistency consistency, Duration max_age) {
  resume(now, wall);
  if (auto known = cache_.find(key, consistency, now, wall, max_age)) {
    begin(std::make_unique<KnownGet>(std::move(*known), std::move(done)), deadline);
    return;
  }
  done = keeping(key, consistency, max_age, std::move(done));
  const SharedGets::Key shared{key, consistency};
  if (gets_.join(shared, deadline, done))
    return;
  const SharedGets::Ticket ticket = gets_.open(shared, deadline, std::move(done));
  auto get = std::make_unique<GetOperation>(
      key, id_, storage_.get(key, wall), consistency,
      [this, ticket](GetResult result) { gets_.finished(ticket, std::move(result)); });
  gets_.set_operation(ticket, *get);
  begin(std::move(get), kNever);
}

// For callers that allow results an age; not if we stored something meanwhile ourselves.
GetOperation::Done Node::keeping(const Id& key, Consistency consistency, Duration max_age,
                                 GetOperation::Done done) {
  if (max_age <= 0)
    return done;
  return [this, key, consistency, stores = stores_, done = std::move(done)](GetResult result) {
    if (stores == stores_)
      cache_.keep(key, consistency, now_, result);
    done(std::move(result));
  };
}

// Our own copy makes a lone node find what it stored, and what it stores now it finds from now on.
void Node::store_own(const Record& record) {
  if (const auto put = storage_.put(record, std::nullopt, wall_, verifier_);
      put.verdict == Verdict::kStored)
    on_stored(record, put.changed);
  gets_.close(record.key);
  cache_.forget(record.key);
  ++stores_;
}

void Node::start_store(Time now, WallMs wall, Record record, Time deadline,
                       StoreOperation::Done done) {
  resume(now, wall);
  store_own(record);
  begin(std::make_unique<StoreOperation>(std::move(record), id_, std::move(done)), deadline);
}

void Node::start_lookup(Time now, WallMs wall, const Id& target, Time deadline,
                        LookupOperation::Done done) {
  resume(now, wall);
  begin(std::make_unique<LookupOperation>(target, id_, Lookup::Patience::kPatient, std::move(done)),
        deadline);
}

void Node::start_get_many(Time now, WallMs wall, std::vector<Id> keys, Time deadline,
                          GetManyOperation::Done done, Consistency consistency, Duration max_age) {
  resume(now, wall);
  const auto make_get = [&](const Id& key, GetOperation::Done got) -> std::unique_ptr<Operation> {
    if (auto known = cache_.find(key, consistency, now, wall, max_age))
      return std::make_unique<KnownGet>(std::move(*known), std::move(got));
    return std::make_unique<GetOperation>(key, id_, storage_.get(key, wall), consistency,
                                          keeping(key, consistency, max_age, std::move(got)));
  };
  begin(std::make_unique<GetManyOperation>(std::move(keys), make_get, std::move(done)), deadline);
}

void Node::start_store_many(Time now, WallMs wall, std::vector<Record> records, Time deadline,
                            StoreManyOperation::Done done) {
  resume(now, wall);
  for (const Record& record : records)
    store_own(record);
  begin(std::make_unique<StoreManyOperation>(std::move(records), id_, std::move(done)), deadline);
}

void Node::start_ping(Time now, WallMs wall, const Endpoint& to, Time deadline,
                      PingOperation::Done done) {
  resume(now, wall);
  hello_.ask(
      now, to,
      [this, deadline, done = std::move(done)](const Endpoint& from, const auto& answer) mutable {
        if (!answer || answer->key == identity_.public_key()) {
          done(PingResult{answer ? answer->rtt : -1});
          return;
        }
        begin(
            std::make_unique<PingOperation>(Contact::make(answer->key, {}, from), std::move(done)),
            deadline);
      },
      outbox_, deadline);
}

void Node::start_hello(Time now, const Endpoint& to, HelloExchange::Done done) {
  hello_.ask(now, to, std::move(done), outbox_);
}

void Node::start(Time now, std::unique_ptr<Operation> operation, Time deadline) {
  now_ = std::max(now_, now);
  begin(std::move(operation), deadline);
}

std::optional<ListenId> Node::start_listen(const Id& key, Subscriptions::OnEvent on_event) {
  return closing_ ? std::nullopt : subscriptions_.add(key, std::move(on_event));
}

} // namespace lah::dht
