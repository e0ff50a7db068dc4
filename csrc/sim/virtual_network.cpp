#include "sim/virtual_network.hpp"

#include <algorithm>
#include <cassert>

#include "sim/hash_cipher.hpp"

namespace lah::sim {
namespace {
constexpr uint32_t kFirstAddress = 0x0a000001; // 10.0.0.1
constexpr uint16_t kPort = 8081;
constexpr WallMs kEpochMs = 1'700'000'000'000;
} // namespace

struct VirtualNetwork::Host {
  Host(const crypto::Identity& owner, uint64_t seed, dht::NodeConfig node_config, int64_t skew_ms)
      : identity(owner), rng(seed), config(std::move(node_config)), clock_skew_ms(skew_ms) {}

  void boot(CipherKind kind) {
    node.reset();
    if (kind == CipherKind::kSealed)
      cipher = std::make_unique<dht::SealedCipher>(identity, config.network_id, rng);
    else
      cipher = std::make_unique<HashCipher>(identity.public_key(), config.network_id, rng);
    node = std::make_unique<dht::Node>(config, identity, *cipher, rng);
  }

  const crypto::Identity identity;
  SeededRng rng;
  dht::NodeConfig config;
  int64_t clock_skew_ms;
  std::unique_ptr<dht::PacketCipher> cipher;
  std::unique_ptr<dht::Node> node;
  bool up = true;
  Time timer_at = kNever;
};

VirtualNetwork::VirtualNetwork(uint64_t seed, Faults faults, CipherKind cipher)
    : rng_(seed), faults_(faults), cipher_(cipher) {}

VirtualNetwork::~VirtualNetwork() = default;

size_t VirtualNetwork::add(const NodeOptions& options) {
  const size_t index = hosts_.size();
  dht::NodeConfig config{options.network_id, {}, options.client_mode};
  for (const size_t seed : options.seeds)
    config.seeds.push_back(endpoint(seed));
  const crypto::Identity identity = crypto::Identity::generate(rng_);
  hosts_.push_back(
      std::make_unique<Host>(identity, rng_.u64(), std::move(config), options.clock_skew_ms));
  hosts_.back()->boot(cipher_);
  schedule_timer(index);
  return index;
}

void VirtualNetwork::restart(size_t index) {
  hosts_[index]->boot(cipher_);
  hosts_[index]->timer_at = kNever;
  schedule_timer(index);
}

dht::Node& VirtualNetwork::node(size_t index) {
  return *hosts_[index]->node;
}

Endpoint VirtualNetwork::endpoint(size_t index) const {
  return Endpoint::v4(kFirstAddress + static_cast<uint32_t>(index), kPort);
}

const crypto::Identity& VirtualNetwork::identity(size_t index) const {
  return hosts_[index]->identity;
}

void VirtualNetwork::set_up(size_t index, bool up) {
  hosts_[index]->up = up;
  schedule_timer(index);
}

bool VirtualNetwork::is_up(size_t index) const {
  return hosts_[index]->up;
}

WallMs VirtualNetwork::wall(size_t index) const {
  return kEpochMs + static_cast<WallMs>(now_ / kMillisecond) +
         static_cast<WallMs>(hosts_[index]->clock_skew_ms);
}

bool VirtualNetwork::chance(double probability) {
  return static_cast<double>(rng_.u64() >> 11) * 0x1p-53 < probability;
}

void VirtualNetwork::post(size_t from, const dht::Datagram& datagram) {
  const uint32_t address = static_cast<uint32_t>(datagram.to.ip[12]) << 24 |
                           static_cast<uint32_t>(datagram.to.ip[13]) << 16 |
                           static_cast<uint32_t>(datagram.to.ip[14]) << 8 | datagram.to.ip[15];
  const size_t to = address - kFirstAddress;
  const int copies = (chance(faults_.loss) ? 0 : 1) + (chance(faults_.duplicate) ? 1 : 0);
  if (to >= hosts_.size() || datagram.to != endpoint(to) || !hosts_[from]->up ||
      (partition_ && partition_(from, to)))
    return;
  for (int i = 0; i < copies; ++i) {
    const auto spread = static_cast<uint64_t>(faults_.latency_max - faults_.latency_min);
    const Time at = now_ + faults_.latency_min + static_cast<Duration>(rng_.below(spread + 1));
    events_.push({at, ++last_order_, to, false, endpoint(from), datagram.bytes});
  }
}

void VirtualNetwork::inject(size_t to, const Endpoint& from, Buffer bytes) {
  events_.push({now_, ++last_order_, to, false, from, std::move(bytes)});
}

void VirtualNetwork::collect(size_t index) {
  for (const dht::Datagram& datagram : hosts_[index]->node->take_datagrams())
    post(index, datagram);
  schedule_timer(index);
}

void VirtualNetwork::schedule_timer(size_t index) {
  Host& host = *hosts_[index];
  const Time next = std::max(host.node->next_deadline(), now_);
  if (!host.up || next == kNever || next == host.timer_at)
    return;
  host.timer_at = next;
  events_.push({next, ++last_order_, index, true, {}, {}});
}

void VirtualNetwork::handle(const Event& event) {
  Host& host = *hosts_[event.to];
  if (event.timer && host.timer_at == event.at)
    host.timer_at = kNever;
  else if (event.timer)
    return; // planned anew since
  if (!host.up)
    return;
  log(event);
  if (event.timer) {
    host.node->on_timer(now_, wall(event.to));
  } else {
    if (on_delivery)
      on_delivery(event.from, event.to, event.bytes);
    host.node->on_datagram(now_, wall(event.to), event.from, event.bytes);
  }
  collect(event.to);
}

void VirtualNetwork::log(const Event& event) {
  ++event_count_;
  const std::array<uint64_t, 3> numbers{static_cast<uint64_t>(event.at), event.to, event.timer};
  log_ = crypto::sha256(
      {as_bytes(log_), std::as_bytes(std::span(numbers)), as_bytes(event.from.ip), event.bytes});
}

bool VirtualNetwork::run_until(Time limit, const std::function<bool()>& done) {
  while (!done()) {
    if (events_.empty() || events_.top().at > limit) {
      now_ = std::max(now_, limit);
      return false;
    }
    const Event event = events_.top();
    events_.pop();
    now_ = event.at;
    handle(event);
  }
  return true;
}

dht::GetResult VirtualNetwork::get(size_t index, const dht::Id& key, Duration limit) {
  std::optional<dht::GetResult> result;
  node(index).start_get(now_, wall(index), key, now_ + limit,
                        [&](dht::GetResult got) { result = std::move(got); });
  collect(index);
  run_until(now_ + limit + kSecond, [&] { return result.has_value(); });
  assert(result.has_value());
  return std::move(*result);
}

dht::StoreResult VirtualNetwork::store(size_t index, const dht::Record& record, Duration limit) {
  std::optional<dht::StoreResult> result;
  node(index).start_store(now_, wall(index), record, now_ + limit,
                          [&](const dht::StoreResult& stored) { result = stored; });
  collect(index);
  run_until(now_ + limit + kSecond, [&] { return result.has_value(); });
  assert(result.has_value());
  return *result;
}

} // namespace lah::sim
