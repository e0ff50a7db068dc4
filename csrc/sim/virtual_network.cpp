#include "sim/virtual_network.hpp"

#include <algorithm>
#include <cassert>

#include "sim/host.hpp"
#include "sim/random.hpp"

namespace lah::sim {
namespace {
constexpr WallMs kEpochMs = 1'700'000'000'000;
} // namespace

VirtualNetwork::VirtualNetwork(uint64_t seed, Faults faults, CipherKind cipher)
    : rng_(seed), faults_(faults), cipher_(cipher) {
  crypto::initialize();
}

VirtualNetwork::~VirtualNetwork() = default;

// --- hosts ---------------------------------------------------------------------------------------

size_t VirtualNetwork::add(const NodeOptions& options) {
  const size_t index = hosts_.size();
  dht::NodeConfig config{options.network_id, {}, options.client_mode};
  for (const size_t seed : options.seeds)
    config.seeds.push_back(endpoint(seed));
  config.verified = &verified_;
  if (options.configure)
    options.configure(config);
  const crypto::Identity identity =
      options.identity ? *options.identity : crypto::Identity::generate(rng_);
  auto host = std::make_unique<Host>(identity, rng_.u64(), std::move(config));
  host->clock_skew_ms = options.clock_skew_ms;
  host->region = options.region ? *options.region : Geography::draw(rng_);
  host->endpoint = options.endpoint.value_or(planned_endpoint(index));
  if (options.endpoint)
    unplanned_[host->endpoint] = index;
  if (options.nat != NatKind::kNone)
    host->nat.emplace(options.nat, host->endpoint, options.nat_timeout);
  host->actor = options.actor;
  host->boot(cipher_);
  hosts_.push_back(std::move(host));
  schedule_timer(index);
  return index;
}

void VirtualNetwork::restart(size_t index) {
  hosts_[index]->boot(cipher_);
  schedule_timer(index);
}

dht::Node& VirtualNetwork::node(size_t index) {
  return *hosts_[index]->node;
}

const dht::Node& VirtualNetwork::node(size_t index) const {
  return *hosts_[index]->node;
}

Endpoint VirtualNetwork::endpoint(size_t index) const {
  return hosts_[index]->endpoint;
}

dht::Contact VirtualNetwork::contact(size_t index) const {
  return dht::Contact::make(identity(index).public_key(), {}, endpoint(index));
}

const crypto::Identity& VirtualNetwork::identity(size_t index) const {
  return hosts_[index]->identity;
}

Geography::Region VirtualNetwork::region(size_t index) const {
  return hosts_[index]->region;
}

Duration VirtualNetwork::rtt(size_t a, size_t b) const {
  return faults_.regions ? Geography::rtt(region(a), region(b))
                         : faults_.latency_min + faults_.latency_max;
}

void VirtualNetwork::set_up(size_t index, bool up) {
  hosts_[index]->up = up;
  schedule_timer(index);
}

bool VirtualNetwork::is_up(size_t index) const {
  return hosts_[index]->up;
}

void VirtualNetwork::set_frozen(size_t index, bool frozen) {
  Host& host = *hosts_[index];
  host.frozen = frozen;
  if (frozen)
    return;
  for (Delivery& delivery : std::exchange(host.waiting, {}))
    events_.push_delivery(now_, index, std::move(delivery));
  schedule_timer(index);
}

void VirtualNetwork::set_passive(size_t index, bool passive) {
  hosts_[index]->passive = passive;
  schedule_timer(index);
}

WallMs VirtualNetwork::wall(size_t index) const {
  return kEpochMs + static_cast<WallMs>(now_ / kMillisecond) +
         static_cast<WallMs>(hosts_[index]->clock_skew_ms);
}

WallMs VirtualNetwork::network_wall(size_t index) {
  node(index).set_time(now_, wall(index));
  return node(index).wall();
}

// --- datagrams -----------------------------------------------------------------------------------

std::optional<size_t> VirtualNetwork::host_at(const Endpoint& endpoint) const {
  if (const auto found = unplanned_.find(endpoint); found != unplanned_.end())
    return found->second;
  const std::optional<size_t> index = planned_index(endpoint);
  if (!index || *index >= hosts_.size())
    return std::nullopt;
  const Host& host = *hosts_[*index];
  if (host.nat ? host.endpoint.ip == endpoint.ip : host.endpoint == endpoint)
    return index;
  return std::nullopt;
}

Duration VirtualNetwork::delay(size_t from, size_t to) {
  Duration delay = faults_.latency_min;
  if (faults_.regions) {
    const double jitter = kJitterMin + (kJitterMax - kJitterMin) * uniform(rng_);
    delay = static_cast<Duration>(static_cast<double>(rtt(from, to) / 2) * jitter);
  } else if (faults_.latency_max > faults_.latency_min) {
    const auto spread = static_cast<uint64_t>(faults_.latency_max - faults_.latency_min);
    delay += static_cast<Duration>(rng_.below(spread + 1));
  }
  if (chance(rng_, faults_.detour))
    delay += static_cast<Duration>(rng_.below(Faults::kDetour));
  return delay;
}

void VirtualNetwork::post(size_t from, dht::Datagram datagram) {
  Host& sender = *hosts_[from];
  if (!sender.up)
    return;
  const Endpoint source = sender.nat ? sender.nat->outbound(now_, datagram.to) : sender.endpoint;
  const std::optional<size_t> to = host_at(datagram.to);
  if (!to || (partition_ && partition_(from, *to)))
    return;
  const bool lost = chance(rng_, faults_.loss);
  if (chance(rng_, faults_.duplicate))
    events_.push_delivery(now_ + delay(from, *to), *to, {source, datagram.to, datagram.bytes});
  if (!lost)
    events_.push_delivery(now_ + delay(from, *to), *to,
                          {source, datagram.to, std::move(datagram.bytes)});
}

void VirtualNetwork::inject(size_t to, const Endpoint& from, Buffer bytes) {
  events_.push_delivery(now_, to, {from, endpoint(to), std::move(bytes)});
}

void VirtualNetwork::send_all(size_t from, std::vector<dht::Datagram> datagrams) {
  for (dht::Datagram& datagram : datagrams)
    post(from, std::move(datagram));
  schedule_timer(from);
}

void VirtualNetwork::collect(size_t index) {
  send_all(index, hosts_[index]->node->take_datagrams());
}

// --- events --------------------------------------------------------------------------------------

// A node has one timer that counts. An earlier one replaces it; a later one is planned when this
// one fires, so that deadlines met in time leave nothing behind.
void VirtualNetwork::schedule_timer(size_t index) {
  Host& host = *hosts_[index];
  if (!host.runs() || host.passive)
    return;
  const Time next = std::max(host.next_deadline(), now_);
  if (next >= host.timer_at)
    return;
  host.timer_at = next;
  events_.push_timer(next, index);
}

void VirtualNetwork::handle_timer(const Event& event) {
  Host& host = *hosts_[event.host];
  if (host.timer_at != event.at)
    return; // replaced
  host.timer_at = kNever;
  if (!host.runs() || host.passive)
    return;
  if (host.next_deadline() > now_) {
    schedule_timer(event.host);
    return;
  }
  log_.timer(now_, event.host);
  if (host.actor) {
    send_all(event.host, host.actor->on_timer(now_));
    return;
  }
  host.node->on_timer(now_, wall(event.host));
  collect(event.host);
}

void VirtualNetwork::handle_delivery(const Event& event) {
  Delivery delivery = events_.take(event);
  Host& host = *hosts_[event.host];
  if (!host.up || (host.nat && !host.nat->admits(now_, delivery.to.port, delivery.from)))
    return;
  if (host.frozen) {
    if (host.waiting.size() < kFrozenDatagrams)
      host.waiting.push_back(std::move(delivery));
    return;
  }
  log_.delivery(now_, event.host, delivery.from, delivery.bytes);
  if (on_delivery)
    on_delivery(delivery.from, event.host, delivery.bytes);
  if (host.actor) {
    send_all(event.host, host.actor->on_datagram(now_, delivery.from, delivery.bytes));
    return;
  }
  host.node->on_datagram(now_, wall(event.host), delivery.from, delivery.bytes);
  collect(event.host);
}

bool VirtualNetwork::run_until(Time limit, const std::function<bool()>& done) {
  while (!done()) {
    if (events_.empty() || events_.top().at > limit) {
      now_ = std::max(now_, limit);
      return false;
    }
    const Event event = events_.pop();
    now_ = event.at;
    if (event.is_timer())
      handle_timer(event);
    else
      handle_delivery(event);
  }
  return true;
}

dht::GetResult VirtualNetwork::get(size_t index, const dht::Id& key, Duration limit) {
  std::optional<dht::GetResult> result;
  node(index).start_get(now_, network_wall(index), key, now_ + limit,
                        [&](dht::GetResult got) { result = std::move(got); });
  collect(index);
  run_until(now_ + limit + kSecond, [&] { return result.has_value(); });
  assert(result.has_value());
  return std::move(*result);
}

dht::StoreResult VirtualNetwork::store(size_t index, const dht::Record& record, Duration limit) {
  std::optional<dht::StoreResult> result;
  node(index).start_store(now_, network_wall(index), record, now_ + limit,
                          [&](const dht::StoreResult& stored) { result = stored; });
  collect(index);
  run_until(now_ + limit + kSecond, [&] { return result.has_value(); });
  assert(result.has_value());
  return *result;
}

} // namespace lah::sim
