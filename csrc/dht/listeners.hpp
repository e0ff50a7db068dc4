#pragma once

#include <set>

#include "base/subnet.hpp"
#include "dht/message.hpp"
#include "dht/storage.hpp"

namespace lah::dht {

// Who wants to be told what changes under which keys, and how much each has been told. A change
// goes out at once, the next ones together a little later; a record that was merely refreshed waits
// longer, and only for those who asked for such.
//
// Each key has one log of what was stored, by version; a listener is a place in it.
class Listeners {
public:
  // The listener has proved its address.
  ListenReply listen(Time now, WallMs wall, const Contact& listener, const ListenRequest& request,
                     const Storage& storage);
  // `changed`: not merely refreshed.
  void on_stored(Time now, WallMs wall, const Record& record, bool changed);
  struct Push {
    Contact to;
    NotifyRequest body;
    uint64_t from_version; // to start again from, if it is lost
    Time sent_at;
  };
  // What is due now. Every push must end in on_pushed().
  std::vector<Push> take_due(Time now, WallMs wall, const Storage& storage);
  void on_pushed(Time now, const Push& push, const Reply* reply); // null: no answer
  Time next_deadline() const;
  size_t size() const { return size_; }

  static constexpr Duration kBatch = milliseconds(200);
  // A refresh may be late by this, or by a twelfth of what the record has left to live.
  static constexpr Duration kRefreshDelay = 5 * kSecond;

private:
  struct Listener {
    Contact contact;
    Time until = 0;
    bool refreshes = false;
    uint64_t told = 0;  // what was stored up to this version was sent, if it was wanted
    uint64_t since = 0; // what changed after this version must be sent in full
    Time due = kNever;
    Time pushed_at = -kBatch;
    Time heard_at = 0;
    size_t in_flight = 0;
    size_t failures = 0;              // in a row
    bool cut_off = false;             // there was more to tell than it may be sent at once
    std::set<PublicKey> missing = {}; // owners it asked for in full
  };
  struct Change {
    PublicKey owner;
    uint64_t changed; // the version in which its content changed last
  };
  struct Topic {
    uint64_t version = 0;
    uint64_t changed = 0;           // the version of the last change
    std::map<uint64_t, Change> log; // one entry per owner, at its newest version
    std::map<PublicKey, uint64_t> versions;
    std::map<PublicKey, Listener> listeners;
    Digest digest{};
    uint64_t digest_of = UINT64_MAX; // the value of `changed` then
    Time digest_until = 0;
  };
  using Place = std::pair<Id, PublicKey>;

  bool has_room(const Id& key) const;
  bool has_room(const Endpoint& endpoint) const;
  void occupy(const Endpoint& endpoint);
  void vacate(const Endpoint& endpoint);
  void update_digest(Time now, WallMs wall, const Id& key, Topic& topic, const Storage& storage);
  void schedule(const Id& key, Listener& listener, Time at);
  void unschedule(const Id& key, Listener& listener);
  void sweep(Time now);
  void drop(const Id& key, const PublicKey& listener);
  static std::optional<NotifyRequest> next_notify(const Id& key, const Topic& topic,
                                                  Listener& listener, WallMs wall,
                                                  const Storage& storage);

  std::map<Id, Topic> topics_;
  std::set<std::pair<Time, Place>> due_;
  std::map<Subnet, size_t> subnets_; // listeners from each
  Time next_sweep_ = kNever;         // of those whose lifetime has ended
  size_t size_ = 0;
  size_t in_flight_ = 0;
};

} // namespace lah::dht
