#include "dht/newcomer_gate.hpp"

#include "base/subnet.hpp"

namespace lah::dht {
namespace {

// The finalizer of MurmurHash3, keyed: who cannot see the seed cannot choose its buckets.
uint64_t mix(uint64_t value, uint64_t seed) {
  value = (value ^ seed) * 0xff51afd7ed558ccdULL;
  value = (value ^ (value >> 33)) * (seed | 1);
  return value ^ (value >> 29);
}

uint64_t hash(const Endpoint& from, bool local, uint64_t seed) {
  std::array<uint64_t, 2> words{};
  if (local) {
    std::memcpy(words.data(), from.ip.data(), from.ip.size());
  } else {
    words[0] = subnet_of(from).word;
  }
  return mix(words[1] ^ mix(words[0], seed), seed);
}

} // namespace

bool NewcomerGate::admit(Time now, const Endpoint& from) {
  if (!all_.has(now, kAll))
    return false;
  if (buckets_.empty())
    buckets_.resize(2 * kRow);
  const bool local = from.is_private();
  const Rate rate = local ? kLocal : kSubnet;
  const uint64_t value = hash(from, local, seed_);
  TokenBucket& first = buckets_[value % kRow];
  TokenBucket& second = buckets_[kRow + (value >> 32) % kRow];
  const bool in_first = first.has(now, rate);
  const bool in_second = second.has(now, rate);
  if (!in_first && !in_second)
    return false;
  if (in_first)
    first.take(now, rate);
  if (in_second)
    second.take(now, rate);
  all_.take(now, kAll);
  return true;
}

bool Newcomers::admit(Time now, const Endpoint& from, ByteView bytes) {
  if (waiting_.size() >= Limits::kNewcomersWaiting || !gate_.admit(now, from)) {
    ++refused_;
    return false;
  }
  if (now != turn_) {
    turn_ = now;
    admitted_ = 0;
  }
  if (waiting_.empty() && admitted_ < Limits::kNewcomersPerTurn) {
    ++admitted_;
    return true;
  }
  waiting_.push_back({from, Buffer(bytes.begin(), bytes.end())});
  return false;
}

std::vector<Newcomers::Packet> Newcomers::take_due() {
  std::vector<Packet> due;
  for (; !waiting_.empty() && due.size() < Limits::kNewcomersPerTurn; waiting_.pop_front())
    due.push_back(std::move(waiting_.front()));
  return due;
}

} // namespace lah::dht
