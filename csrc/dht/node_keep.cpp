// What of a node outlives it, and how the next one comes back with it.
#include <algorithm>

#include "dht/node.hpp"

namespace lah::dht {
namespace {
constexpr size_t kNearest = 16; // saved first: they make the node findable again
// Saved contacts asked at once. Half of them dead still leaves a table that lookups can start from.
constexpr size_t kRecalled = 32;
constexpr size_t kReturned = 4; // answers after which a waiting operation has somewhere to start
constexpr size_t kRememberedPeers = 16;
} // namespace

NodeState Node::save_state() const {
  NodeState state;
  state.network_id = config_.network_id;
  state.seq = last_seq_;
  for (const Contact& contact : table_.closest(id_, table_.size()))
    state.contacts.push_back({contact, memory_.rtt(contact).value_or(-1)});
  const auto far = state.contacts.begin() +
                   static_cast<std::ptrdiff_t>(std::min(kNearest, state.contacts.size()));
  std::stable_sort(far, state.contacts.end(), [](const auto& a, const auto& b) {
    return (a.rtt < 0 ? kNever : a.rtt) < (b.rtt < 0 ? kNever : b.rtt);
  });
  state.contacts.resize(std::min(state.contacts.size(), Limits::kSavedContacts));
  state.records = storage_.owned_by(identity_.public_key(), Limits::kSavedRecords);
  return state;
}

// Saved contacts have keys already, so a PING each brings the node back within one round trip. The
// seeds are asked at the same time: either may be dead.
void Node::recall() {
  const NodeState state = std::exchange(config_.state, {});
  for (Record record : state.records) {
    record.certificate = admission_.certificate();
    if (record.owner == identity_.public_key())
      storage_.put(record, std::nullopt, wall_, verifier_);
  }
  std::vector<Endpoint> addresses;
  for (const NodeState::Known& known : state.contacts) {
    if (known.contact.id == id_ || !is_sendable(known.contact.endpoint))
      continue;
    if (known.rtt >= 0)
      memory_.answered(known.contact, known.rtt, true);
    addresses.push_back(known.contact.endpoint);
    if (addresses.size() > kRecalled)
      continue;
    ++recalled_;
    begin(std::make_unique<PingOperation>(
              known.contact, [this](const PingResult& result) { on_recalled(result); }),
          kNever);
  }
  if (recalled_ == 0)
    ready_ = ready_ || !bootstrap_.has_seeds();
  ask_way_in(bootstrap_.attempt(now_, rng_));
  addresses.resize(std::min(addresses.size(), kRememberedPeers));
  bootstrap_.remember(std::move(addresses));
}

void Node::on_recalled(const PingResult& result) {
  --recalled_;
  returned_ += result.rtt >= 0;
  if (returned_ == kReturned || (returned_ > 0 && recalled_ == 0))
    join();
  ready_ = ready_ || returned_ > 0 || (recalled_ == 0 && !bootstrap_.has_seeds());
  if (returned_ >= kReturned || !looking_for_way_in())
    release_parked();
}

} // namespace lah::dht
