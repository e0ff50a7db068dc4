#include "net/connection_guard.hpp"

#include <algorithm>
#include <utility>

namespace lah::net {
namespace {

// One household holds a whole /64 of IPv6 addresses.
std::array<uint8_t, 16> source_of(const Endpoint& from) {
  std::array<uint8_t, 16> address = from.ip;
  if (!from.is_v4())
    std::fill(address.begin() + 8, address.end(), uint8_t{0});
  return address;
}

} // namespace

bool ConnectionGuard::permits(Source& source, Time now) const {
  const double passed = static_cast<double>(now - source.refilled) / kSecond;
  source.tokens = std::min(static_cast<double>(limits_.per_address),
                           source.tokens + passed * static_cast<double>(limits_.per_second));
  source.refilled = now;
  if (source.tokens < 1 || source.open >= limits_.per_address ||
      source.silent >= limits_.silent_per_address)
    return false;
  source.tokens -= 1;
  return true;
}

bool ConnectionGuard::accepted(Time now, int fd, const Endpoint& from) {
  const bool heard_already = heard_early_.erase(fd) > 0;
  if (closed_early_.erase(fd) > 0)
    return true;
  if (const auto found = connections_.find(fd); found != connections_.end())
    remove(found); // nobody told of its end
  Connection& connection = connections_[fd];
  connection.address = source_of(from);
  connection.serial = next_serial_++;
  bool keep = kept_ < limits_.total;
  if (keep && !from.is_loopback()) {
    if (sources_.size() >= Limits::kConnectionSources)
      forget_old_sources(now);
    const auto [found, is_new] = sources_.try_emplace(connection.address);
    Source& source = found->second;
    if (is_new) {
      source.tokens = static_cast<double>(limits_.per_address);
      source.refilled = now;
    }
    keep = permits(source, now);
    if (keep) {
      ++source.open;
      source.silent += heard_already ? 0 : 1;
    }
  }
  connection.silent = !heard_already;
  connection.kept = keep;
  kept_ += keep ? 1 : 0;
  refused_ += keep ? 0 : 1;
  return keep;
}

void ConnectionGuard::heard(int fd) {
  const auto found = connections_.find(fd);
  if (found == connections_.end()) {
    heard_early_.insert(fd);
    return;
  }
  if (!std::exchange(found->second.silent, false) || !found->second.kept)
    return;
  if (const auto source = sources_.find(found->second.address); source != sources_.end())
    --source->second.silent;
}

void ConnectionGuard::closed(int fd) {
  const auto found = connections_.find(fd);
  if (found == connections_.end())
    closed_early_.insert(fd);
  else
    remove(found);
}

void ConnectionGuard::remove(std::unordered_map<int, Connection>::iterator found) {
  const Connection connection = found->second;
  connections_.erase(found);
  if (!connection.kept)
    return;
  --kept_;
  if (const auto source = sources_.find(connection.address); source != sources_.end()) {
    --source->second.open;
    source->second.silent -= connection.silent ? 1 : 0;
  }
}

std::optional<uint64_t> ConnectionGuard::serial(int fd) const {
  const auto found = connections_.find(fd);
  return found == connections_.end() ? std::nullopt : std::optional(found->second.serial);
}

// A source without connections, and whose tokens are all back, is like one never seen.
void ConnectionGuard::forget_old_sources(Time now) {
  const Duration recovery = static_cast<Duration>(limits_.per_address) * kSecond /
                            static_cast<Duration>(std::max<size_t>(limits_.per_second, 1));
  std::erase_if(sources_, [&](const auto& entry) {
    return entry.second.open == 0 && now - entry.second.refilled >= recovery;
  });
  if (sources_.size() < Limits::kConnectionSources)
    return;
  std::erase_if(sources_, [](const auto& entry) { return entry.second.open == 0; });
}

} // namespace lah::net
