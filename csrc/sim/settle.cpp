// The steady state of a network, reached at once.
#include <algorithm>

#include "sim/host.hpp"

namespace lah::sim {
namespace {

struct Member {
  dht::Contact contact;
  size_t host;
};
using Members = std::span<const Member>;

// Those of `members`, in order of ids and all sharing `bits` leading bits, whose next bit is 1
// begin here.
Members::iterator first_set(Members members, size_t bits) {
  const uint64_t mask = uint64_t{1} << (63 - bits % 64);
  return std::partition_point(members.begin(), members.end(), [&](const Member& member) {
    return (member.contact.id.words[bits / 64] & mask) == 0;
  });
}

} // namespace

void VirtualNetwork::settle(size_t choices, const std::function<void(size_t)>& progress) {
  std::vector<Member> all;
  for (size_t i = 0; i < hosts_.size(); ++i)
    if (hosts_[i]->up && !hosts_[i]->config.client_mode)
      all.push_back({contact(i), i});
  std::sort(all.begin(), all.end(),
            [](const Member& a, const Member& b) { return a.contact.id < b.contact.id; });

  for (size_t index = 0; index < hosts_.size(); ++index) {
    if (!hosts_[index]->up)
      continue;
    if (progress && index % 1000 == 0)
      progress(index);
    dht::Node& own = node(index);
    // Upkeep spreads a bucket over its part of the key space: so many shares, one contact of each.
    const auto fill = [&](Members bucket, size_t capacity) {
      const size_t shares = std::min(capacity, bucket.size());
      for (size_t share = 0; share < shares; ++share) {
        const size_t begin = share * bucket.size() / shares;
        const size_t width = (share + 1) * bucket.size() / shares - begin;
        const Member* best = nullptr;
        for (size_t choice = 0; choice < std::min(choices, width); ++choice) {
          const size_t at = width <= choices ? choice : rng_.below(width);
          const Member& member = bucket[begin + at];
          if (best == nullptr || rtt(index, member.host) < rtt(index, best->host))
            best = &member;
        }
        own.learn(best->contact, rtt(index, best->host), now_);
      }
    };
    Members near = all; // share `bits` leading bits with the node
    for (size_t bits = 0; bits < 256 && !near.empty(); ++bits) {
      const auto middle = first_set(near, bits);
      const Members zeros(near.begin(), middle);
      const Members ones(middle, near.end());
      const bool set = (own.id().words[bits / 64] >> (63 - bits % 64) & 1) != 0;
      fill(set ? zeros : ones, own.table().capacity(bits));
      near = set ? ones : zeros;
      if (near.size() == 1 && near[0].host == index)
        break;
    }
  }
}

void VirtualNetwork::acquaint(size_t index) {
  dht::Node& own = node(index);
  for (const dht::Contact& peer : own.table().closest(own.id(), own.table().size()))
    if (const auto host = host_at(peer.endpoint))
      own.recall(peer, rtt(index, *host));
}

} // namespace lah::sim
