#pragma once

#include <functional>
#include <map>
#include <set>

#include "dht/lookup.hpp"
#include "dht/message.hpp"
#include "dht/pending.hpp"

namespace lah::dht {

// When a get has heard enough. Replicas may differ: a STORE reaches some of them later or never.
enum class Consistency : uint8_t {
  kFirst,  // one replica told all it has, and that is not nothing
  kQuorum, // Limits::kQuorum replicas told the same, and that is not nothing
  kAll,    // every replica told all it has
};

struct GetResult {
  std::vector<Record> records; // live, verified, one per owner, tombstones included; by owner
  size_t answered = 0;         // nodes that answered
  bool complete = false;       // false if the deadline came first
};

struct StoreResult {
  size_t replicas = 0;               // other nodes that hold the record now
  std::vector<Contact> holders = {}; // these
  uint64_t newest_seq = 0;           // the highest seq any of them held, if ours was stale; else 0
  bool complete = false;
};

struct PingResult {
  Duration rtt = -1; // negative: no answer
};

// What an operation may do to its node.
class OperationHost {
public:
  virtual ~OperationHost() = default;
  // Returns the txid of the request, by which its answer can be told from others.
  virtual uint64_t request(OpId op, const Contact& to, Request body) = 0;
  // The closest contacts known, and the part of the key space counts as visited.
  virtual std::vector<Contact> closest(const Id& target) = 0;
  // If `near` seem to be the replicas of `target` itself, these, the nearest in time first: one of
  // them will do. Else none.
  virtual std::vector<Id> replicas_by_time(const Id& /*target*/,
                                           const std::vector<Contact>& /*near*/) const {
    return {};
  }
  virtual bool verify(const Record& record) = 0;
  virtual WallMs wall_ms() const = 0;
  virtual Time now() const = 0;
};

// Something a node does over several round trips.
class Operation {
public:
  virtual ~Operation() = default;
  // Where in the key space the operation works; none for those that know whom to ask.
  virtual std::optional<Id> target() const { return std::nullopt; }
  // `near`: the closest contacts known to target().
  virtual void start(OperationHost& host, const std::vector<Contact>& near) = 0;
  virtual void on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                         const Reply& reply) = 0;
  virtual void on_overdue(OperationHost& host, const SentRequest& request) = 0;
  virtual void on_lapsed(OperationHost&, const SentRequest&) {}
  virtual void on_failed(OperationHost& host, const SentRequest& request) = 0;
  virtual bool finished() const = 0;
  // Tells the caller; called once, finished or not.
  virtual void complete(OperationHost& host) = 0;
  // Finished, and yet late answers are worth waiting for.
  virtual bool lingers() const { return false; }
  // Its requests are sent a third time, when they lapse.
  virtual bool insists() const { return false; }

  OpId id = 0;
  bool told = false;    // its caller was
  bool unasked = false; // its request is sent once: the peer did not prove its address
  Time deadline = kNever;
};

// Finds the nodes closest to a key. Base of everything that needs them.
class LookupOperation : public Operation {
public:
  using Done = std::function<void(size_t answered)>;
  LookupOperation(const Id& target, const Id& own, Lookup::Patience patience, Done done,
                  size_t alpha = Limits::kLookupAlpha);

  std::optional<Id> target() const override { return lookup_.target(); }
  void start(OperationHost& host, const std::vector<Contact>& near) override;
  void on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                 const Reply& reply) override;
  void on_overdue(OperationHost& host, const SentRequest& request) override;
  void on_lapsed(OperationHost& host, const SentRequest& request) override;
  void on_failed(OperationHost& host, const SentRequest& request) override;
  bool finished() const override { return started_ && lookup_.finished(); }
  void complete(OperationHost& host) override;

protected:
  virtual bool wants_records() const { return false; }
  virtual FindRequest find_request() { return {{lookup_.target()}, wants_records()}; }
  virtual void on_asked(OperationHost&, const Contact&, uint64_t /*txid*/, const FindRequest&) {}
  virtual void on_found(OperationHost&, const Contact&, const FindReply::Entry&) {}
  void pump(OperationHost& host);

  Lookup lookup_;
  size_t answered_ = 0;

private:
  bool started_ = false; // it may have to wait for a way into the network
  Done done_;
};

// Collects the records under a key from its replicas. One that never hears enough ends as kAll
// does.
class GetOperation final : public LookupOperation {
public:
  using Done = std::function<void(GetResult)>;
  GetOperation(const Id& key, const Id& own, std::vector<Record> local, Consistency consistency,
               Done done);

  void start(OperationHost& host, const std::vector<Contact>& near) override;
  void on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                 const Reply& reply) override;
  void on_overdue(OperationHost& host, const SentRequest& request) override;
  void on_failed(OperationHost& host, const SentRequest& request) override;
  bool finished() const override {
    return heard_enough_ || (pages_owed_ == 0 && LookupOperation::finished());
  }
  void complete(OperationHost& host) override { done_(so_far(host)); }
  GetResult so_far(const OperationHost& host) const;

protected:
  bool wants_records() const override { return true; }
  void on_found(OperationHost& host, const Contact& from, const FindReply::Entry& entry) override;

private:
  // What one node said so far.
  struct Replica {
    size_t pages_asked = 0;
    std::optional<PublicKey> after = {}; // the page being waited for
    bool asked_again = false;            // for that page
    crypto::Digest told{};               // of owners and seqs, in their order
  };

  void hear(OperationHost& host, const Contact& from, const std::vector<Record>& records,
            bool more);
  bool accept(OperationHost& host, const Record& record);
  void ask_page(OperationHost& host, const Contact& from, Replica& replica);
  void ask_more();
  void told_all(const Replica& replica);

  Consistency consistency_;
  bool thrifty_ = false;
  bool heard_enough_ = false;
  std::map<PublicKey, Record> found_;
  std::map<PublicKey, Replica> replicas_;
  std::map<crypto::Digest, size_t> agreeing_;
  size_t pages_owed_ = 0;
  Done done_;
};

// A get whose result is known beforehand.
class KnownGet final : public Operation {
public:
  KnownGet(GetResult result, GetOperation::Done done)
      : result_(std::move(result)), done_(std::move(done)) {}

  void start(OperationHost&, const std::vector<Contact>&) override {}
  void on_answer(OperationHost&, const SentRequest&, const Header&, const Reply&) override {}
  void on_overdue(OperationHost&, const SentRequest&) override {}
  void on_failed(OperationHost&, const SentRequest&) override {}
  bool finished() const override { return true; }
  void complete(OperationHost&) override { done_(std::move(result_)); }

private:
  GetResult result_;
  GetOperation::Done done_;
};

// Stores one record at the nodes closest to its key: at each as soon as it has answered and no
// closer ones are known that might take its place. Who answers after the caller was told gets the
// record too.
class StoreOperation final : public LookupOperation {
public:
  using Done = std::function<void(StoreResult)>;
  StoreOperation(Record record, const Id& own, Done done);

  void start(OperationHost& host, const std::vector<Contact>& near) override;
  void on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                 const Reply& reply) override;
  void on_lapsed(OperationHost& host, const SentRequest& request) override;
  void on_failed(OperationHost& host, const SentRequest& request) override;
  bool finished() const override { return LookupOperation::finished() && waiting_ == 0; }
  bool lingers() const override { return waiting_ > 0 || lookup_.awaits_late(); }
  bool insists() const override { return true; }
  void complete(OperationHost& host) override;

private:
  void store_at_found(OperationHost& host);

  Record record_;
  std::set<Id> stored_at_; // or asked to be
  size_t waiting_ = 0;
  StoreResult result_;
  Done done_;
};

// One PING.
class PingOperation final : public Operation {
public:
  using Done = std::function<void(PingResult)>;
  PingOperation(const Contact& to, Done done) : to_(to), done_(std::move(done)) {}

  void start(OperationHost& host, const std::vector<Contact>& near) override;
  void on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                 const Reply& reply) override;
  void on_overdue(OperationHost&, const SentRequest&) override {}
  void on_failed(OperationHost&, const SentRequest&) override { finished_ = true; }
  bool finished() const override { return finished_; }
  void complete(OperationHost& host) override;

private:
  Contact to_;
  bool finished_ = false;
  PingResult result_;
  Done done_;
};

} // namespace lah::dht
