#pragma once

#include "dht/read_operation.hpp"

namespace lah::dht {

class Node;

// What became known about a key that somebody listens to. Records are verified and were alive when
// they came; that they expire is not told.
struct ListenEvent {
  std::vector<Record> changed;   // new or of another payload; an empty one takes the record back
  std::vector<Record> refreshed; // the same payload, to expire later
  bool first = false;            // `changed` is all that the key holds
};

// Listens to one key: reads it, then has some of its replicas tell what changes. One replica tells
// of refreshes too; what nobody refreshes in time is asked for elsewhere. When a LISTEN is renewed,
// digests show what was missed.
class Subscription {
public:
  // Operations outlive a subscription: what they bring is handed to whoever `find` still finds.
  using Find = std::function<Subscription*()>;
  Subscription(Node& node, const Id& key, Find find);

  void on_timer(Time now, WallMs wall);
  Time next_deadline() const;
  // Null if this peer is none of those that were asked to tell.
  std::optional<NotifyReply> on_notify(const Contact& from, const NotifyRequest& notify);
  void on_stored(const Record& record); // by this very node
  void look_again(Time now) { look_at_ = now; }
  void stop();

  bool has_news() const;
  ListenEvent take_news();
  ListenEvent everything() const; // for a further listener; only after the first news
  bool told() const { return told_; }

private:
  struct Held {
    Record record;
    uint64_t content;
    WallMs heard_ms; // when it came
    WallMs ask_ms;   // when to ask for a fresher one
  };
  struct Replica {
    Contact contact;
    bool refreshes;
    bool waiting = true; // for an answer to LISTEN
    size_t attempts = 1;
    Time renew_at = kNever;
    Digest read{}; // its digest of each sector when that was read last
  };
  enum class Accepted : uint8_t { kNothing, kRefresh, kChange, kRefused };

  Accepted accept(Record record);
  void expire(WallMs wall);

  void read(Time now);
  void on_read(std::vector<Contact> closest);
  void look(Time now);
  void on_closest(std::vector<Contact> closest);
  void fill();

  Replica* replica(const PublicKey& key);
  void listen(Replica& replica);
  void on_listening(const PublicKey& key, const Reply* reply);
  void lose(const PublicKey& key);
  void choose_teller(); // of refreshes

  Digest digest() const;
  void compare(Replica& replica, const Digest& theirs);
  struct SectorRead {
    Contact from;
    size_t sector;
    std::optional<PublicKey> after;
    uint64_t sum;
    size_t pages;        // left
    size_t failures = 0; // in a row
  };
  void read_sector(const SectorRead& read);
  void on_page(SectorRead read, const Reply* reply);
  void ask_for_stale(WallMs wall);

  Node& node_;
  Id key_;
  Find find_;
  std::map<PublicKey, Held> held_;
  std::vector<Replica> replicas_;
  std::vector<Contact> candidates_; // to take their places
  bool reading_ = false;
  bool looking_ = false;
  bool covered_ = false;
  bool told_ = false;
  Time look_at_ = 0;
  Time check_at_ = kNever; // for records that nobody refreshed
  Duration patience_;
  size_t turn_ = 0; // of the replicas, to be asked for stale records
  std::set<PublicKey> changed_;
  std::set<PublicKey> refreshed_;
};

} // namespace lah::dht
