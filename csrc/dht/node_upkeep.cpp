#include <algorithm>

#include "dht/node.hpp"

namespace lah::dht {
namespace {
constexpr Duration kTick = kSecond;
// A bucket nobody looked into for this long gets a lookup, one each tick.
constexpr Duration kRefreshAfter = 600 * kSecond;
constexpr Duration kSplitCheck = 600 * kSecond;
constexpr Duration kLostCheck = 10 * kSecond;
constexpr Duration kDoubtFor = 5 * kSecond;
constexpr Duration kRemember = 60 * kSecond;
constexpr size_t kRememberedPeers = 16;
} // namespace

void Node::on_timer(Time now, WallMs wall) {
  set_time(now, wall);
  run_newcomers();
  run_requests();
  hello_.on_timer(now, outbox_);
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const OpId id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    end(id);
  }
  for (const OpId id : gets_.expire(now, *this))
    end(id);
  if (!config_.state.contacts.empty() || !config_.state.records.empty())
    recall();
  run_bootstrap();
  if (now >= next_tick_)
    run_tick();
  if (now >= subscriptions_.next_deadline())
    subscriptions_.on_timer(now_, wall_);
  if (now >= listeners_.next_deadline())
    notify_listeners();
  for (size_t i = 0; i < tasks_.size(); ++i) // a task may add or remove tasks
    if (tasks_[i]->next_deadline() <= now)
      tasks_[i]->on_timer(now_, wall_);
  settle();
}

Time Node::next_deadline() const {
  if (!finished_.empty() || newcomers_.waiting())
    return now_;
  Time next =
      std::min({next_tick_, pending_.next_deadline(), hello_.next_deadline(), gets_.next_deadline(),
                listeners_.next_deadline(), subscriptions_.next_deadline()});
  if (!deadlines_.empty())
    next = std::min(next, deadlines_.begin()->first);
  if (isolated() && bootstrap_.can_try() && !looking_for_way_in())
    next = std::min(next, bootstrap_.next_attempt());
  for (const NodeTask* task : tasks_)
    next = std::min(next, task->next_deadline());
  return next;
}

void Node::run_requests() {
  PendingRequests::Due due = pending_.due(now_);
  for (const SentRequest& request : due.overdue) {
    if (!request.datagram.empty())
      send(request.to.endpoint, request.datagram);
    with_operation(request.op, [&](Operation& op) { op.on_overdue(*this, request); });
  }
  for (const SentRequest& request : due.lapsed)
    with_operation(request.op, [&](Operation& op) {
      if (op.insists() && !request.datagram.empty())
        send(request.to.endpoint, request.datagram);
      op.on_lapsed(*this, request);
    });
  for (const SentRequest& request : due.failed) {
    ++counters_.requests_failed;
    if (table_.fail(request.to))
      bootstrap_.lost(request.to, now_);
    else if (table_.contains(request.to.id))
      upkeep_.ask_again(request.to, now_ + kDoubtFor);
    if (request.kind != MessageKind::kNotify) // listeners come and go: that says nothing about us
      note_outcome(false);
    with_operation(request.op, [&](Operation& op) { op.on_failed(*this, request); });
  }
}

// --- finding and keeping a way into the network --------------------------------------------------

void Node::note_outcome(bool answered) {
  outcomes_ <<= 1;
  outcomes_[0] = !answered;
  outcome_count_ = std::min(outcome_count_ + 1, outcomes_.size());
}

bool Node::isolated() const {
  if (table_.size() == 0)
    return bootstrap_.can_try();
  return outcome_count_ >= 16 && outcomes_.count() * 10 > outcome_count_ * 6;
}

void Node::run_bootstrap() {
  if (now_ >= next_split_check_ && !looking_for_way_in()) {
    next_split_check_ = now_ + kSplitCheck;
    ask_way_in(bootstrap_.random_seed(rng_));
  }
  if (isolated() && bootstrap_.can_try() && !looking_for_way_in() &&
      now_ >= bootstrap_.next_attempt())
    ask_way_in(bootstrap_.attempt(now_, rng_));
}

void Node::ask_way_in(const std::vector<Endpoint>& addresses) {
  for (const Endpoint& address : addresses) {
    ++open_hellos_;
    hello_.ask(
        now_, address,
        [this, asked_at = now_](const Endpoint& from, const auto& answer) {
          --open_hellos_;
          if (answer && answer->key == identity_.public_key()) {
            bootstrap_.forget(from);
            ready_ = ready_ || !bootstrap_.has_seeds();
          } else if (answer && !admission_.is_open()) {
            ask_to_be_admitted(Contact::make(answer->key, {}, from));
          } else if (answer) {
            table_.confirm(Contact::make(answer->key, {}, from), answer->rtt, now_);
            if (joined_at_ < asked_at) // else another has shown us in since
              join();
          }
          if (!looking_for_way_in())
            release_parked(); // nobody answered: let them end with what this node has
        },
        outbox_);
  }
}

void Node::join() {
  if (joining_)
    return;
  joining_ = true;
  begin(std::make_unique<LookupOperation>(id_, id_, Lookup::Patience::kPatient,
                                          [this](size_t answered) {
                                            joining_ = false;
                                            if (answered > 0)
                                              on_joined();
                                            release_parked();
                                          }),
        kNever);
}

void Node::on_joined() {
  ready_ = true;
  joined_at_ = now_;
  outcomes_.reset();
  outcome_count_ = 0;
  next_split_check_ = now_ + kSplitCheck;
  subscriptions_.on_joined(now_);
  for (size_t i = 0; i < tasks_.size(); ++i)
    tasks_[i]->on_joined(now_, wall_);
}

void Node::release_parked() {
  for (auto& operation : std::exchange(parked_, {}))
    launch(std::move(operation));
}

void Node::run_tick() {
  next_tick_ = now_ + kTick;
  storage_.expire(wall_);
  tokens_.rotate_if_due(now_, rng_);
  run_reachability();
  memory_.turn(now_);
  // Over twice as many the mean is steadier.
  if (const auto near = table_.closest(id_, 2 * Limits::kReplicas);
      near.size() == 2 * Limits::kReplicas)
    neighbours_reach_ = distance(near.back().id, id_).words[0] / 2;
  if (table_.size() > 0 && now_ >= next_remember_) {
    next_remember_ = now_ + kRemember;
    std::vector<Endpoint> alive;
    for (const Contact& contact : table_.closest(id_, kRememberedPeers))
      alive.push_back(contact.endpoint);
    bootstrap_.remember(std::move(alive));
  }
  if (!ready_ && table_.size() > 0)
    join();        // nobody answered the first time, others have come since
  if (!isolated()) // else it is our own line that fails, and nobody shall pay for it
    run_table_upkeep();
  if (now_ >= next_lost_check_) {
    next_lost_check_ = now_ + kLostCheck;
    if (const auto lost = bootstrap_.pick_lost(now_, rng_))
      begin(std::make_unique<PingOperation>(*lost,
                                            [this, id = lost->id](const PingResult& result) {
                                              if (result.rtt < 0)
                                                return;
                                              bootstrap_.found(id);
                                              join(); // everybody behind it may be new to us
                                            }),
            kNever);
  }
  if (const auto target = table_.refresh_target(now_ - kRefreshAfter, now_, rng_))
    begin(std::make_unique<LookupOperation>(*target, id_, Lookup::Patience::kImpatient, nullptr,
                                            Limits::kBackgroundAlpha),
          kNever);
}

void Node::hear_of(const Contact& by, const FindReply& reply) {
  for (const FindReply::Entry& entry : reply.entries)
    for (const Contact& contact : entry.contacts)
      if (is_sendable(contact.endpoint) &&
          (by.endpoint.is_loopback() || !contact.endpoint.is_loopback()))
        upkeep_.heard(contact);
}

void Node::run_table_upkeep() {
  TableUpkeep::Plan plan = upkeep_.plan(now_, rng_);
  for (const Contact& contact : plan.pings) {
    auto ping = std::make_unique<PingOperation>(contact, [](const PingResult&) {});
    ping->unasked = !table_.contains(contact.id);
    begin(std::move(ping), kNever);
  }
  if (plan.gap)
    for (const Contact& nearest : table_.closest(*plan.gap, 1))
      request(kUpkeep, nearest, FindRequest{{*plan.gap}});
}

} // namespace lah::dht
