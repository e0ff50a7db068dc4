#include "dht/declarer.hpp"

#include <algorithm>

#include "dht/level_declaration.hpp"

namespace lah::dht {
namespace {
constexpr size_t kStoresInFlight = 16; // of a server with thousands of experts
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
    auto parts = encode_declaration(served.boot_id, std::move(groups));
    if (!parts)
      return Error{parts.error().code, "prefix '" + prefix + "': " + parts.error().message};
    for (size_t part = 0; part < parts->size(); ++part)
      payloads[declaration_key(prefix, static_cast<uint32_t>(part))] = std::move((*parts)[part]);
  }
  return payloads;
}

Buffer Declarer::server_payload() const {
  return encode_server({addresses(served_), served_.boot_id, served_.version});
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
  std::map<Id, Buffer> round = *payloads;
  for (const auto& [key, payload] : declared_)
    round.try_emplace(key); // no longer served: a tombstone
  served_ = std::move(served);
  declared_ = std::move(*payloads);
  round[server_key(node_.identity().public_key())] = server_payload();
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
  if (served_.addresses.empty()) // the one our peers see may be another one by now
    if (auto payloads = encode_all(served_))
      declared_ = std::move(*payloads);
  std::map<Id, Buffer> round = declared_;
  round[server_key(node_.identity().public_key())] = server_payload();
  start_round(now, wall, std::move(round), now + served_.period, nullptr);
}

void Declarer::on_joined(Time now, WallMs) {
  if (!declared_.empty())
    next_refresh_ = now; // what was stored while alone is known to nobody
}

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
    waiting_.push_back({key, std::move(payload), round, false});
  pump(now, wall);
}

void Declarer::pump(Time now, WallMs wall) {
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
    Round& round = rounds_[store.round];
    round.fewest = std::min(round.fewest, result.replicas + 1);
    if (--round.open == 0) {
      const Done done = std::move(round.done);
      const size_t fewest = round.fewest;
      rounds_.erase(store.round);
      if (done)
        done(fewest);
    }
  }
  pump(node_.time(), node_.wall());
}

} // namespace lah::dht
