#include "dht/declarer.hpp"

#include <algorithm>

#include "crypto/sealed_packet.hpp"
#include "dht/level_declaration.hpp"

namespace lah::dht {
namespace {
constexpr size_t kStoresInFlight = 16;     // of a server with thousands of experts
constexpr size_t kRefreshesInFlight = 128; // records
constexpr Duration kLookEvery = 120 * kSecond;
constexpr Duration kLookAtMost = 40 * kSecond; // for a nearer node that may not want the record
constexpr size_t kStoreRoom =
    Limits::kDatagramBytes - crypto::kPacketOverhead - kHeaderWireBytes - 3;
constexpr size_t kStoredKeyBytes = 34; // beside a record in a reply
constexpr uint32_t kLoopback = 0x7f000001;

using Groups = std::map<std::pair<uint64_t, size_t>, DeclaredGroup>; // by schema and depth

} // namespace

Declarer::Declarer(Node& node) : node_(node) {
  node_.add_task(*this);
}

Declarer::~Declarer() {
  node_.remove_task(*this);
}

std::vector<Endpoint> Declarer::addresses(const Served& served) const {
  std::vector<Endpoint> addresses = served.addresses;
  if (addresses.empty())
    addresses.push_back(node_.status().observed.value_or(Endpoint::v4(kLoopback, 1)));
  for (Endpoint& address : addresses)
    address.port = served.tcp_port;
  return addresses;
}

Result<std::map<Id, Buffer>> Declarer::encode_all(const Served& served) const {
  std::map<std::string, Groups> prefixes;
  for (const Expert& expert : served.experts) {
    const size_t depth = expert.uid.coordinates.size();
    DeclaredGroup& group = prefixes[expert.uid.prefix][{expert.schema_hash, depth}];
    group.schema_hash = expert.schema_hash;
    group.depth = depth;
    group.experts.push_back(expert.uid.coordinates);
  }
  std::map<Id, Buffer> payloads;
  for (const auto& [prefix, by_schema] : prefixes) {
    std::vector<DeclaredGroup> groups;
    std::vector<DeclaredGroup> in_levels;
    for (const auto& [schema, group] : by_schema) {
      groups.push_back(group);
      if (needs_levels(group, served.grid_cells))
        in_levels.push_back(group);
    }
    auto levels = encode_levels(prefix, node_.identity().public_key(), served.boot_id,
                                addresses(served).front(), in_levels);
    if (!levels)
      return levels.error();
    payloads.merge(*levels);
    auto parts = encode_declaration(served.boot_id, std::move(groups), addresses(served));
    if (!parts)
      return Error{parts.error().code, "prefix '" + prefix + "': " + parts.error().message};
    for (size_t part = 0; part < parts->size(); ++part)
      payloads[declaration_key(prefix, static_cast<uint32_t>(part))] = std::move((*parts)[part]);
  }
  return payloads;
}

std::map<Id, Buffer> Declarer::with_server(std::map<Id, Buffer> payloads) const {
  payloads[server_key(node_.identity().public_key())] =
      encode_server({declared_addresses_, served_.boot_id, served_.version});
  return payloads;
}

// Milliseconds keep growing over restarts of the same identity without anything on disk.
uint64_t Declarer::next_seq(WallMs wall) {
  last_seq_ = std::max({last_seq_ + 1, wall, node_.next_seq()});
  return last_seq_;
}

Result<size_t> Declarer::declare(Time now, WallMs wall, Served served, Time deadline, Done done) {
  Result<std::map<Id, Buffer>> payloads = encode_all(served);
  if (!payloads)
    return payloads.error();
  served_ = std::move(served);
  std::map<Id, Buffer> round = *payloads;
  for (const auto& [key, payload] : declared_)
    round.try_emplace(key); // no longer served: a tombstone
  declared_ = std::move(*payloads);
  declared_addresses_ = addresses(served_);
  round = with_server(std::move(round));
  const size_t records = round.size();
  next_refresh_ = now + served_.period;
  start_round(now, wall, std::move(round), deadline, std::move(done));
  return records;
}

void Declarer::undeclare(Time now, WallMs wall, Time deadline, Done done) {
  std::map<Id, Buffer> round;
  for (const auto& [key, payload] : std::exchange(declared_, {}))
    round.try_emplace(key);
  if (!round.empty())
    round.try_emplace(server_key(node_.identity().public_key()));
  next_refresh_ = kNever;
  start_round(now, wall, std::move(round), deadline, std::move(done));
}

void Declarer::on_timer(Time now, WallMs wall) {
  if (now < next_refresh_)
    return;
  const auto jitter =
      static_cast<Duration>(node_.rng().below(static_cast<uint64_t>(served_.period) / 8 + 1));
  next_refresh_ = now + served_.period - jitter;
  if (addresses(served_) != declared_addresses_) // our peers see us elsewhere now
    if (auto payloads = encode_all(served_)) {
      declared_ = std::move(*payloads);
      declared_addresses_ = addresses(served_);
    }
  start_round(now, wall, with_server(declared_), now + served_.period, nullptr);
}

void Declarer::on_joined(Time now, WallMs) {
  holders_.clear();
  if (!declared_.empty())
    next_refresh_ = now; // what was stored while alone is known to nobody
}

// --- rounds --------------------------------------------------------------------------------------

void Declarer::start_round(Time now, WallMs wall, std::map<Id, Buffer> payloads, Time deadline,
                           Done done) {
  if (payloads.empty()) {
    if (done)
      done(0);
    return;
  }
  const uint64_t round = ++last_round_;
  rounds_[round] = {payloads.size(), SIZE_MAX, deadline, std::move(done)};
  for (auto& [key, payload] : payloads)
    (can_refresh(now, key) ? refreshable_ : waiting_)
        .push_back({key, std::move(payload), round, false});
  pump(now, wall);
}

void Declarer::finish_one(uint64_t number, size_t replicas) {
  Round& round = rounds_[number];
  round.fewest = std::min(round.fewest, replicas);
  if (--round.open > 0)
    return;
  const Done done = std::move(round.done);
  const size_t fewest = round.fewest;
  rounds_.erase(number);
  if (done)
    done(fewest);
}

void Declarer::pump(Time now, WallMs wall) {
  start_refreshes(wall);
  while (in_flight_ < kStoresInFlight && !waiting_.empty()) {
    Waiting store = std::move(waiting_.front());
    waiting_.pop_front();
    ++in_flight_;
    Record record = node_.sign(store.key, next_seq(wall), wall + served_.expiry_ms, store.payload);
    node_.start_store(
        now, wall, std::move(record), rounds_[store.round].deadline,
        [this, store = std::move(store)](const StoreResult& result) { on_stored(store, result); });
  }
}

void Declarer::on_stored(const Waiting& store, const StoreResult& result) {
  --in_flight_;
  if (result.newest_seq != 0 && !store.retried) {
    // Our clock went back since the last incarnation of this identity: go on from its seq.
    last_seq_ = std::max(last_seq_, result.newest_seq);
    waiting_.push_front({store.key, store.payload, store.round, true});
  } else {
    const auto jitter = static_cast<Duration>(node_.rng().below(uint64_t{kLookEvery} / 4));
    const Time now = node_.time();
    const bool enough = result.holders.size() >= Limits::kReplicas;
    if (result.holders.empty() || store.payload.empty())
      holders_.erase(store.key);
    else
      holders_[store.key] = {result.holders, now,
                             now + (enough ? kLookEvery : kLookAtMost) - jitter};
    finish_one(store.round, result.replicas + 1);
  }
  pump(node_.time(), node_.wall());
}

// --- straight to those that held it --------------------------------------------------------------

bool Declarer::can_refresh(Time now, const Id& key) const {
  const auto found = holders_.find(key);
  if (found == holders_.end() || now >= found->second.look_at)
    return false;
  const std::vector<Contact>& contacts = found->second.contacts;
  if (now < found->second.looked_at + kLookAtMost)
    return true;
  const auto holds = [&](const Contact& near) {
    return std::any_of(contacts.begin(), contacts.end(),
                       [&](const Contact& contact) { return contact.id == near.id; });
  };
  Id farthest;
  for (const Contact& contact : contacts)
    farthest = std::max(farthest, distance(contact.id, key));
  const std::vector<Contact> near = node_.table().closest(key, contacts.size());
  return std::all_of(near.begin(), near.end(), [&](const Contact& contact) {
    return holds(contact) || distance(contact.id, key) > farthest;
  });
}

void Declarer::start_refreshes(WallMs wall) {
  if (open_requests_ > 0 || refreshable_.empty())
    return;
  std::map<PublicKey, std::pair<Contact, std::vector<size_t>>> shares;
  Time deadline = kNever;
  while (!refreshable_.empty() && refreshes_.size() < kRefreshesInFlight) {
    Waiting store = std::move(refreshable_.front());
    refreshable_.pop_front();
    const auto holders = holders_.find(store.key);
    if (holders == holders_.end()) { // one of them failed meanwhile
      waiting_.push_back(std::move(store));
      continue;
    }
    Record record = node_.sign(store.key, next_seq(wall), wall + served_.expiry_ms, store.payload);
    node_.store_own(record);
    deadline = std::min(deadline, rounds_[store.round].deadline);
    for (const Contact& contact : holders->second.contacts) {
      auto& [to, records] = shares[contact.key];
      to = contact;
      records.push_back(refreshes_.size());
    }
    refreshes_.push_back({std::move(store), std::move(record)});
  }
  for (const auto& [key, share] : shares)
    send_refreshes(share.first, share.second, deadline);
}

// In as few datagrams as hold them.
void Declarer::send_refreshes(const Contact& to, const std::vector<size_t>& refreshes,
                              Time deadline) {
  for (size_t next = 0; next < refreshes.size();) {
    StoreRequest request;
    std::vector<size_t> sent;
    size_t room = kStoreRoom;
    while (next < refreshes.size() && request.records.size() < Limits::kStoreBatch) {
      const Record& record = refreshes_[refreshes[next]].record;
      const size_t bytes = record_wire_bytes(record) + kStoredKeyBytes;
      if (bytes > room && !sent.empty())
        break;
      room -= std::min(room, bytes);
      request.records.push_back(record);
      sent.push_back(refreshes[next++]);
    }
    ++open_requests_;
    node_.start(
        node_.time(),
        std::make_unique<ExchangeOperation>(to, std::move(request),
                                            [this, to, sent = std::move(sent)](const Reply* reply) {
                                              on_refreshed(to, sent, reply);
                                            }),
        deadline);
  }
}

void Declarer::on_refreshed(const Contact& to, const std::vector<size_t>& refreshes,
                            const Reply* reply) {
  const auto* answer = reply == nullptr ? nullptr : std::get_if<StoreReply>(reply);
  for (size_t i = 0; i < refreshes.size(); ++i) {
    Refresh& refresh = refreshes_[refreshes[i]];
    if (answer != nullptr && i < answer->outcomes.size() && is_held(answer->outcomes[i].verdict)) {
      ++refresh.replicas;
      continue;
    }
    refresh.failed = true;
    if (answer != nullptr && i < answer->outcomes.size() &&
        answer->outcomes[i].verdict == Verdict::kStale)
      last_seq_ = std::max(last_seq_, answer->outcomes[i].seq);
  }
  if (reply == nullptr) // it is of no use to the other records either
    std::erase_if(holders_, [&](const auto& entry) {
      const auto& contacts = entry.second.contacts;
      return std::any_of(contacts.begin(), contacts.end(),
                         [&](const Contact& contact) { return contact.key == to.key; });
    });
  if (--open_requests_ == 0)
    finish_refreshes();
}

void Declarer::finish_refreshes() {
  for (Refresh& refresh : std::exchange(refreshes_, {})) {
    if (refresh.failed) {
      holders_.erase(refresh.store.key);
      waiting_.push_back(std::move(refresh.store)); // to where it is held now
    } else {
      finish_one(refresh.store.round, refresh.replicas + 1);
    }
  }
  pump(node_.time(), node_.wall());
}

} // namespace lah::dht
