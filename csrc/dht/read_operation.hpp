#pragma once

#include <set>

#include "dht/operation.hpp"
#include "dht/ring_cover.hpp"

namespace lah::dht {

// Reads everything under a key as fast as it comes: each replica is asked for another part of the
// ring of owners, so that the first answers together bring many pages, and the gaps between them
// are filled by pages asked for at once, from all replicas that answered.
class ReadOperation final : public LookupOperation {
public:
  struct Listener {
    std::function<void(std::vector<Record>)> on_records; // verified, newer than those before
    std::function<void()> on_covered; // every owner was asked about; once, or never
    std::function<void(std::vector<Contact> closest)> done;
  };
  ReadOperation(const Id& key, const Id& own, Rng& rng, Listener listener);

  void on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                 const Reply& reply) override;
  void on_overdue(OperationHost& host, const SentRequest& request) override;
  void on_failed(OperationHost& host, const SentRequest& request) override;
  bool finished() const override {
    return pages_.empty() && LookupOperation::finished() && (covered_ || !is_reading());
  }
  void complete(OperationHost& host) override;

protected:
  bool wants_records() const override { return true; }
  FindRequest find_request() override;
  void on_asked(OperationHost& host, const Contact& to, uint64_t txid,
                const FindRequest& find) override;
  void on_found(OperationHost& host, const Contact& from, const FindReply::Entry& entry) override;

private:
  struct Find {
    Id start; // where it began to read; a late answer still tells of that part
    bool overdue;
  };
  struct Page {
    std::optional<Id> after;
    Contact from;
    bool overdue;
  };

  bool is_reading() const; // by FINDs that are not overdue
  void accept(OperationHost& host, std::vector<Record> records);
  void on_page(OperationHost& host, const Page& page, const PageReply* reply);
  void blame(const PublicKey& source);
  void plan(OperationHost& host);
  void ask_page(OperationHost& host, const std::optional<Id>& after);
  bool somebody_is_at(const std::optional<Id>& after) const;
  // The widest stretch nobody reads from its middle, if it is worth a page of its own.
  std::optional<Id> where_to_split() const;
  void check_cover();

  Listener listener_;
  uint8_t first_start_;            // on the ring
  uint8_t starts_ = 0;             // chosen so far
  Id answered_start_;              // of the FIND whose answer is being read
  std::map<uint64_t, Find> finds_; // in flight, by txid
  std::map<uint64_t, Page> pages_;
  std::map<PublicKey, uint64_t> seqs_; // of the records found
  struct Source {                      // a replica that holds records
    Contact contact;
    size_t failures = 0; // in a row
  };
  std::vector<Source> sources_;
  RingCover cover_;
  std::set<PublicKey> saw_all_; // replicas of which one answer was everything they have
  size_t pages_asked_ = 0;
  bool covered_ = false;
};

// The nodes closest to a key.
class ClosestOperation final : public LookupOperation {
public:
  using Done = std::function<void(std::vector<Contact> closest)>;
  ClosestOperation(const Id& key, const Id& own, Done done)
      : LookupOperation(key, own, Lookup::Patience::kPatient, nullptr), done_(std::move(done)) {}
  void complete(OperationHost& host) override;

private:
  Done done_;
};

// One request to one peer.
class ExchangeOperation final : public Operation {
public:
  using Done = std::function<void(const Reply* reply)>; // null: no answer
  ExchangeOperation(const Contact& to, Request request, Done done)
      : to_(to), request_(std::move(request)), done_(std::move(done)) {}

  void start(OperationHost& host, const std::vector<Contact>& near) override;
  void on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                 const Reply& reply) override;
  void on_overdue(OperationHost&, const SentRequest&) override {}
  void on_failed(OperationHost&, const SentRequest&) override { finished_ = true; }
  bool finished() const override { return finished_; }
  void complete(OperationHost& host) override;

private:
  Contact to_;
  Request request_;
  std::optional<Reply> reply_;
  bool finished_ = false;
  Done done_;
};

} // namespace lah::dht
