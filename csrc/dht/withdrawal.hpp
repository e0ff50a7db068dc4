#pragma once

#include <map>
#include <vector>

#include "base/limits.hpp"
#include "dht/contact.hpp"

namespace lah::dht {

// Whoever asked this node before it found out that strangers do not reach it may hold it in a
// routing table, where it would cost every lookup that passes by a timeout. They are told, and take
// it out: any request that says this node serves nobody does that.
class Withdrawal {
public:
  // It asked us and has our answer.
  void answered(const Contact& peer) {
    if (holders_.size() < Limits::kWithdrawals)
      holders_.try_emplace(peer.id, peer);
  }
  void forget() { holders_.clear(); } // let them keep us

  // Whom to tell now; called once a second.
  std::vector<Contact> next() {
    std::vector<Contact> peers;
    while (peers.size() < kPerSecond && !holders_.empty())
      peers.push_back(holders_.extract(holders_.begin()).mapped());
    return peers;
  }

  static constexpr size_t kPerSecond = 16;

private:
  std::map<Id, Contact> holders_;
};

} // namespace lah::dht
