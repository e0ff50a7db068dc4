#include "dht/operation.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
// A replica may hold at most Limits::kRecordsPerKey records; one that goes on longer is lying.
constexpr size_t kPagesPerReplica = 1024;
} // namespace

// --- LookupOperation -----------------------------------------------------------------------------

LookupOperation::LookupOperation(const Id& target, const Id& own, Lookup::Patience patience,
                                 Done done, size_t alpha)
    : lookup_(target, own, patience, alpha), done_(std::move(done)) {}

void LookupOperation::start(OperationHost& host, const std::vector<Contact>& near) {
  started_ = true;
  for (const Contact& contact : near)
    lookup_.add(contact);
  pump(host);
}

void LookupOperation::pump(OperationHost& host) {
  if (told)
    return; // what late answers name is not looked for: those who name it could go on forever
  while (const auto contact = lookup_.next()) {
    const FindRequest find = find_request();
    const uint64_t txid = host.request(id, *contact, find);
    on_asked(host, *contact, txid, find);
  }
}

void LookupOperation::on_answer(OperationHost& host, const SentRequest& request,
                                const Header& header, const Reply& reply) {
  const Contact& from = request.to;
  const auto* find = std::get_if<FindReply>(&reply);
  if (find == nullptr || find->entries.size() != 1) {
    LookupOperation::on_failed(host, request);
    return;
  }
  ++answered_;
  lookup_.answered(from.id, header.token.value_or(Token{}));
  for (const Contact& contact : find->entries[0].contacts)
    if (is_sendable(contact.endpoint) &&
        (from.endpoint.is_loopback() || !contact.endpoint.is_loopback()))
      lookup_.add(contact, from.id);
  on_found(host, from, find->entries[0]);
  if (!finished())
    pump(host);
}

void LookupOperation::on_overdue(OperationHost& host, const SentRequest& request) {
  if (request.kind != MessageKind::kFind)
    return;
  lookup_.overdue(request.to.id);
  pump(host);
}

void LookupOperation::on_lapsed(OperationHost&, const SentRequest& request) {
  if (request.kind == MessageKind::kFind)
    lookup_.lapsed(request.to.id);
}

void LookupOperation::on_failed(OperationHost& host, const SentRequest& request) {
  lookup_.failed(request.to.id);
  pump(host);
}

void LookupOperation::complete(OperationHost&) {
  if (done_)
    done_(answered_);
}

// --- GetOperation --------------------------------------------------------------------------------

GetOperation::GetOperation(const Id& key, const Id& own, std::vector<Record> local,
                           Consistency consistency, Done done)
    : LookupOperation(key, own, Lookup::Patience::kImpatient, nullptr,
                      consistency == Consistency::kAll ? Limits::kReplicas : Limits::kLookupAlpha),
      consistency_(consistency), done_(std::move(done)) {
  for (Record& record : local)
    found_.emplace(record.owner, std::move(record));
}

// Of eight replicas that are known, a few will do: any of them has the record, and the network of
// most runs is so small that all are known. Whoever disappoints makes it a get like any other.
void GetOperation::start(OperationHost& host, const std::vector<Contact>& near) {
  if (consistency_ == Consistency::kFirst) {
    std::vector<Id> replicas = host.replicas_by_time(lookup_.target(), near);
    thrifty_ = !replicas.empty();
    if (thrifty_)
      lookup_.set_alpha(Limits::kThriftyAlpha);
    lookup_.ask_first(std::move(replicas));
  }
  LookupOperation::start(host, near);
}

void GetOperation::ask_more() {
  if (std::exchange(thrifty_, false))
    lookup_.set_alpha(Limits::kLookupAlpha);
}

// True if the record is one to tell the caller, heard now or before.
bool GetOperation::accept(OperationHost& host, const Record& record) {
  const auto held = found_.find(record.owner);
  if (held != found_.end() && held->second.seq >= record.seq)
    return true;
  const WallMs wall = host.wall_ms();
  if ((held == found_.end() && found_.size() >= Limits::kRecordsPerKey) ||
      record.expiry_ms <= wall || record.expiry_ms > wall + Limits::kRecordLifetimeMs)
    return false;
  Record fresh = record;
  fresh.key = lookup_.target();
  if (!host.verify(fresh))
    return false;
  found_.insert_or_assign(record.owner, std::move(fresh));
  return true;
}

void GetOperation::hear(OperationHost& host, const Contact& from,
                        const std::vector<Record>& records, bool more) {
  Replica& replica = replicas_[from.key];
  for (const Record& record : records)
    if (accept(host, record))
      replica.told = crypto::sha256({as_bytes(replica.told), as_bytes(record.owner),
                                     std::as_bytes(std::span(&record.seq, 1))});
  if (!more) {
    if (records.empty())
      ask_more();
    told_all(replica);
    return;
  }
  if (!records.empty())
    replica.after = records.back().owner;
  replica.asked_again = false;
  ask_page(host, from, replica);
}

void GetOperation::ask_page(OperationHost& host, const Contact& from, Replica& replica) {
  if (++replica.pages_asked > kPagesPerReplica)
    return;
  ++pages_owed_;
  host.request(id, from, PageRequest{lookup_.target(), replica.after});
}

void GetOperation::told_all(const Replica& replica) {
  if (replica.told == crypto::Digest{})
    return; // nothing
  const size_t agreeing = ++agreeing_[replica.told];
  heard_enough_ |= consistency_ == Consistency::kFirst ||
                   (consistency_ == Consistency::kQuorum && agreeing >= Limits::kQuorum);
}

void GetOperation::on_found(OperationHost& host, const Contact& from,
                            const FindReply::Entry& entry) {
  hear(host, from, entry.records, entry.more);
}

void GetOperation::on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                             const Reply& reply) {
  if (request.kind != MessageKind::kGetPage) {
    LookupOperation::on_answer(host, request, header, reply);
    return;
  }
  --pages_owed_;
  const auto* page = std::get_if<PageReply>(&reply);
  if (page != nullptr)
    hear(host, request.to, page->records, page->more && !page->records.empty());
}

void GetOperation::on_overdue(OperationHost& host, const SentRequest& request) {
  ask_more();
  LookupOperation::on_overdue(host, request);
}

void GetOperation::on_failed(OperationHost& host, const SentRequest& request) {
  ask_more();
  if (request.kind != MessageKind::kGetPage) {
    LookupOperation::on_failed(host, request);
    return;
  }
  --pages_owed_;
  // One lost page ends the whole chain behind it, and dozens of pages are rarely all lucky.
  Replica& replica = replicas_[request.to.key];
  if (!std::exchange(replica.asked_again, true))
    ask_page(host, request.to, replica);
}

GetResult GetOperation::so_far(const OperationHost& host) const {
  GetResult result{{}, answered_, finished()};
  for (const auto& [owner, record] : found_)
    if (record.expiry_ms > host.wall_ms())
      result.records.push_back(record);
  return result;
}

// --- StoreOperation ------------------------------------------------------------------------------

StoreOperation::StoreOperation(Record record, const Id& own, Done done)
    : LookupOperation(record.key, own, Lookup::Patience::kPatient, nullptr),
      record_(std::move(record)), done_(std::move(done)) {}

void StoreOperation::start(OperationHost& host, const std::vector<Contact>& near) {
  LookupOperation::start(host, near);
  store_at_found(host);
}

void StoreOperation::store_at_found(OperationHost& host) {
  for (const Lookup::Found& found : lookup_.closest_so_far()) {
    if (!stored_at_.insert(found.contact.id).second)
      continue;
    ++waiting_;
    host.request(id, found.contact, StoreRequest{{record_}});
  }
}

void StoreOperation::on_answer(OperationHost& host, const SentRequest& request,
                               const Header& header, const Reply& reply) {
  if (request.kind != MessageKind::kStore) {
    LookupOperation::on_answer(host, request, header, reply);
    store_at_found(host);
    return;
  }
  --waiting_;
  const auto* store = std::get_if<StoreReply>(&reply);
  if (store == nullptr || store->outcomes.size() != 1)
    return;
  const StoreReply::Outcome& outcome = store->outcomes[0];
  if (is_held(outcome.verdict)) {
    ++result_.replicas;
    result_.holders.push_back(request.to);
  } else if (outcome.verdict == Verdict::kStale)
    result_.newest_seq = std::max(result_.newest_seq, outcome.seq);
}

void StoreOperation::on_lapsed(OperationHost& host, const SentRequest& request) {
  LookupOperation::on_lapsed(host, request);
  store_at_found(host);
}

void StoreOperation::on_failed(OperationHost& host, const SentRequest& request) {
  if (request.kind == MessageKind::kStore) {
    --waiting_;
    return;
  }
  LookupOperation::on_failed(host, request);
  store_at_found(host);
}

void StoreOperation::complete(OperationHost&) {
  result_.complete = finished();
  done_(result_);
}

// --- PingOperation -------------------------------------------------------------------------------

void PingOperation::start(OperationHost& host, const std::vector<Contact>&) {
  host.request(id, to_, PingRequest{});
}

void PingOperation::on_answer(OperationHost& host, const SentRequest& request, const Header&,
                              const Reply& reply) {
  if (std::holds_alternative<PingReply>(reply))
    result_.rtt = host.now() - request.sent_at;
  finished_ = true;
}

void PingOperation::complete(OperationHost&) {
  done_(result_);
}

} // namespace lah::dht
