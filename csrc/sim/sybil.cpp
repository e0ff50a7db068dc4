#include "sim/sybil.hpp"

#include <algorithm>

namespace lah::sim {
namespace {
constexpr Duration kGreetEvery = 2 * kSecond; // each Sybil shows itself to another victim
constexpr size_t kNamed = 4;                  // of the clan in each answer
constexpr size_t kInvented = Limits::kFindContacts - kNamed;
constexpr size_t kInventedNear = 256; // to choose from, so that each Sybil names others

crypto::Identity draw_identity(VirtualNetwork& net, const SybilOptions& options) {
  crypto::Identity best = crypto::Identity::generate(net.rng());
  const auto away = [&](const crypto::Identity& identity) {
    return dht::distance(dht::node_id(identity.public_key(), {}), *options.near);
  };
  for (size_t i = 1; options.near && i < options.grinding; ++i)
    if (const crypto::Identity other = crypto::Identity::generate(net.rng());
        away(other) < away(best))
      best = other;
  return best;
}
} // namespace

Sybil::Sybil(const crypto::Identity& identity, std::shared_ptr<const SybilClan> clan, uint64_t seed)
    : rng_(seed), clan_(std::move(clan)), cipher_(identity.public_key(), clan_->network_id, rng_),
      next_greeting_(static_cast<Time>(rng_.below(kGreetEvery))) {}

void Sybil::send(const Endpoint& to, const dht::PublicKey& key, const Buffer& plaintext) {
  if (auto sealed = cipher_.seal(key, plaintext))
    outbox_.push_back({to, std::move(*sealed)});
}

std::vector<dht::Datagram> Sybil::on_timer(Time now) {
  next_greeting_ = now + kGreetEvery;
  if (!clan_->victims.empty()) {
    const dht::Contact& victim = clan_->victims[rng_.below(clan_->victims.size())];
    dht::Header header;
    header.txid = rng_.u64();
    send(victim.endpoint, victim.key, dht::encode(header, dht::Request(dht::PingRequest{})));
  }
  return std::exchange(outbox_, {});
}

std::vector<dht::Datagram> Sybil::on_datagram(Time, const Endpoint& from, ByteView bytes) {
  const Result<crypto::Packet> packet = crypto::parse_packet(bytes);
  if (!packet)
    return {};
  if (packet->kind == crypto::PacketKind::kHello)
    return {{from, cipher_.hello_reply(*packet)}};
  const Result<Buffer> plaintext = cipher_.open(*packet);
  if (!plaintext)
    return {};
  const auto decoded = dht::decode(*plaintext);
  if (decoded && std::holds_alternative<dht::RequestMessage>(*decoded))
    answer(from, packet->sender, std::get<dht::RequestMessage>(*decoded));
  return std::exchange(outbox_, {});
}

std::vector<dht::Contact> Sybil::nearest(const dht::Id& key) const {
  std::vector<dht::Contact> near = clan_->members;
  const size_t count = std::min(near.size(), kNamed);
  std::partial_sort(near.begin(), near.begin() + static_cast<std::ptrdiff_t>(count), near.end(),
                    [&](const dht::Contact& a, const dht::Contact& b) {
                      return dht::distance(a.id, key) < dht::distance(b.id, key);
                    });
  near.resize(count);
  return near;
}

void Sybil::invent(const dht::Id& key, std::vector<dht::Contact>& near) {
  const auto& invented = clan_->invented;
  if (invented.size() < kInventedNear)
    return;
  const auto place = std::lower_bound(
      invented.begin(), invented.end(), key,
      [](const dht::Contact& contact, const dht::Id& id) { return contact.id < id; });
  const auto before = static_cast<size_t>(place - invented.begin());
  const size_t first =
      std::min(before - std::min(before, kInventedNear / 2), invented.size() - kInventedNear);
  const size_t skipped = rng_.below(kInventedNear - kInvented);
  for (size_t i = 0; i < kInvented; ++i)
    near.push_back(invented[first + skipped + i]);
}

void Sybil::answer(const Endpoint& from, const dht::PublicKey& key,
                   const dht::RequestMessage& request) {
  dht::Header header;
  header.txid = request.header.txid;
  header.wall_ms = request.header.wall_ms;
  dht::Token token{};
  header.token = token;
  dht::Reply reply = dht::ErrorReply{};
  if (std::holds_alternative<dht::PingRequest>(request.body)) {
    reply = dht::PingReply{from};
  } else if (const auto* find = std::get_if<dht::FindRequest>(&request.body)) {
    dht::FindReply found{from, {}};
    if (find->keys.size() == 1) {
      found.entries.push_back({nearest(find->keys[0]), {}, false});
      invent(find->keys[0], found.entries[0].contacts);
    } else {
      found.entries.resize(find->keys.size());
    }
    reply = std::move(found);
  } else if (const auto* store = std::get_if<dht::StoreRequest>(&request.body)) {
    dht::StoreReply stored;
    for (const dht::Record& record : store->records)
      stored.outcomes.push_back({dht::Verdict::kStored, record.seq});
    reply = std::move(stored);
  } else if (std::holds_alternative<dht::PageRequest>(request.body)) {
    reply = dht::PageReply{};
  }
  send(from, key, dht::encode(header, reply));
}

std::vector<size_t> add_sybils(VirtualNetwork& net, const SybilOptions& options) {
  auto clan = std::make_shared<SybilClan>();
  for (size_t i = 0; i < net.size(); ++i)
    clan->victims.push_back(net.contact(i));
  std::vector<crypto::Identity> identities;
  for (size_t i = 0; i < options.count; ++i) {
    identities.push_back(draw_identity(net, options));
    const Endpoint address = options.subnets == 0
                                 ? planned_endpoint(net.size() + i)
                                 : crowded_endpoint(i % options.subnets, i / options.subnets);
    clan->members.push_back(dht::Contact::make(identities.back().public_key(), {}, address));
  }
  for (size_t i = 0; i < options.invented; ++i) {
    dht::PublicKey key;
    net.rng().fill(std::as_writable_bytes(std::span(key)));
    clan->invented.push_back(dht::Contact::make(key, {}, planned_endpoint(1'000'000 + i)));
  }
  std::ranges::sort(clan->invented, {}, &dht::Contact::id);
  std::vector<size_t> numbers;
  for (size_t i = 0; i < options.count; ++i)
    numbers.push_back(
        net.add({.endpoint = clan->members[i].endpoint,
                 .identity = identities[i],
                 .actor = std::make_shared<Sybil>(identities[i], clan, net.rng().u64())}));
  return numbers;
}

} // namespace lah::sim
