#pragma once

#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/time.hpp"
#include "dht/message.hpp"

namespace lah::dht {

using OpId = uint64_t;

// A peer must be silent for four timeouts before it counts as failed, and never for less than this:
// a process on a busy machine may wait that long for its turn.
inline constexpr Duration kHardTimeoutMin = milliseconds(250);

struct SentRequest {
  uint64_t txid;
  OpId op;
  Contact to;
  MessageKind kind;
  Buffer datagram; // as sent, so that sending it again costs no cipher
  Time sent_at;
  Duration rto = 0;      // of this peer
  Duration patience = 0; // what even a stranger's answer would not exceed, as a rule
  enum class Stage : uint8_t { kSent, kOverdue, kLapsed };
  Stage stage = Stage::kSent;
  Time next_at = 0; // when the stage ends

  bool retransmitted() const { return stage != Stage::kSent; }
};

// Requests in flight. After one timeout a request is overdue: it is sent once more and its lookup
// goes on without it. After half as long again, which is enough for most peers, or when a stranger
// would have answered, it has lapsed, and not even a patient lookup waits any longer. In the end
// the peer has failed.
class PendingRequests {
public:
  void add(SentRequest request, Duration rto, Duration patience);
  // The request this reply answers: same txid, same peer, same address, same kind.
  std::optional<SentRequest> take(uint64_t txid, const PublicKey& from, const Endpoint& endpoint,
                                  MessageKind kind);

  // The operation that waits for this reply.
  std::optional<OpId> operation(uint64_t txid) const {
    const auto found = requests_.find(txid);
    return found == requests_.end() ? std::nullopt : std::optional(found->second.op);
  }

  struct Due {
    std::vector<SentRequest> overdue; // to be sent again
    std::vector<SentRequest> lapsed;
    std::vector<SentRequest> failed;
  };
  Due due(Time now);
  Time next_deadline() const;
  size_t size() const { return requests_.size(); }

private:
  std::unordered_map<uint64_t, SentRequest> requests_;
  std::set<std::pair<Time, uint64_t>> deadlines_;
};

} // namespace lah::dht
