#include "dht/read_operation.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
// A full key in pages of one record each, asked for twice: whoever answers for longer is lying.
constexpr size_t kPagesPerRead = 2 * Limits::kRecordsPerKey;
// Answers that must agree that all fits into one page, and none contradict them: a replica that is
// new here may hold little yet.
constexpr size_t kAgreement = Limits::kReplicas / 2;
constexpr size_t kSourceFailures = 3; // in a row, and a replica is not asked again
constexpr size_t kPagesAhead = 3;     // asked of a replica beside the first
constexpr double kRecordsPerPage = 2; // of a few experts each; only a guess is needed

// Numbers in a row become places far apart, and any 2^n of them almost evenly spaced.
uint8_t reversed(uint8_t number) {
  uint8_t bits = 0;
  for (int bit = 0; bit < 8; ++bit)
    bits = static_cast<uint8_t>(bits << 1 | (number >> bit & 1));
  return bits;
}

Id position(const Record& record) {
  return Id::from_bytes(record.owner);
}
} // namespace

ReadOperation::ReadOperation(const Id& key, const Id& own, Rng& rng, Listener listener)
    : LookupOperation(key, own, Lookup::Patience::kImpatient, nullptr, Limits::kReplicas),
      listener_(std::move(listener)), first_start_(static_cast<uint8_t>(rng.u64())) {}

FindRequest ReadOperation::find_request() {
  FindRequest find{{lookup_.target()}, true};
  find.start = static_cast<uint8_t>(first_start_ + reversed(starts_++));
  return find;
}

// Whoever others named is a replica, as a rule: it is asked for further parts of the ring at once,
// not only when its first answer shows that there is more.
void ReadOperation::on_asked(OperationHost& host, const Contact& to, uint64_t txid,
                             const FindRequest& find) {
  finds_[txid] = {RingCover::at(uint64_t{find.start} << 56), false};
  for (size_t ahead = 0; answered_ > 0 && !covered_ && ahead < kPagesAhead; ++ahead) {
    const FindRequest more = find_request();
    finds_[host.request(id, to, more)] = {RingCover::at(uint64_t{more.start} << 56), false};
  }
}

bool ReadOperation::is_reading() const {
  return std::any_of(finds_.begin(), finds_.end(),
                     [](const auto& find) { return !find.second.overdue; });
}

void ReadOperation::accept(OperationHost& host, std::vector<Record> records) {
  const WallMs wall = host.wall_ms();
  std::erase_if(records, [&](Record& record) {
    record.key = lookup_.target();
    const auto known = seqs_.find(record.owner);
    if (known == seqs_.end() ? seqs_.size() >= Limits::kRecordsPerKey : known->second >= record.seq)
      return true;
    if (record.expiry_ms <= wall || record.expiry_ms > wall + Limits::kRecordLifetimeMs ||
        !host.verify(record))
      return true;
    seqs_[record.owner] = record.seq;
    return false;
  });
  if (!records.empty())
    listener_.on_records(std::move(records));
}

void ReadOperation::on_found(OperationHost& host, const Contact& from,
                             const FindReply::Entry& entry) {
  accept(host, entry.records);
  // Owners keep copies of their own records, wherever they are: only who is near the key can say
  // what else there is, or is not.
  if (lookup_.rank(from.id) >= Limits::kReplicas)
    return;
  if (!entry.more) {
    saw_all_.insert(from.key);
    return;
  }
  if (std::none_of(sources_.begin(), sources_.end(),
                   [&](const Source& source) { return source.contact.key == from.key; }))
    sources_.push_back({from});
  if (entry.records.empty())
    return;
  const Id last = position(entry.records.back());
  if (last < answered_start_) {
    cover_.add(answered_start_, RingCover::kLast);
    cover_.add(Id{}, last);
  } else {
    cover_.add(answered_start_, last);
  }
}

void ReadOperation::on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                              const Reply& reply) {
  if (const auto page = pages_.find(request.txid); page != pages_.end()) {
    const Page asked = page->second;
    pages_.erase(page);
    on_page(host, asked, std::get_if<PageReply>(&reply));
  } else {
    if (const auto find = finds_.find(request.txid); find != finds_.end())
      answered_start_ = find->second.start;
    finds_.erase(request.txid);
    LookupOperation::on_answer(host, request, header, reply);
  }
  plan(host);
  check_cover();
}

void ReadOperation::on_page(OperationHost& host, const Page& page, const PageReply* reply) {
  const Id after = page.after.value_or(Id{});
  if (reply == nullptr || (reply->more && reply->records.empty())) {
    blame(page.from.key);
    return;
  }
  if (!reply->more) {
    cover_.add(after, RingCover::kLast);
  } else if (const Id last = position(reply->records.back()); last > after) {
    cover_.add(after, last);
  } else {
    blame(page.from.key); // it goes round in circles
    return;
  }
  accept(host, reply->records);
  for (Source& source : sources_)
    if (source.contact.key == page.from.key)
      source.failures = 0;
}

void ReadOperation::on_overdue(OperationHost& host, const SentRequest& request) {
  if (const auto find = finds_.find(request.txid); find != finds_.end())
    find->second.overdue = true;
  if (const auto page = pages_.find(request.txid); page != pages_.end())
    page->second.overdue = true;
  LookupOperation::on_overdue(host, request);
  plan(host);
}

void ReadOperation::on_failed(OperationHost& host, const SentRequest& request) {
  finds_.erase(request.txid);
  if (pages_.erase(request.txid) > 0)
    blame(request.to.key);
  else
    LookupOperation::on_failed(host, request);
  plan(host);
  check_cover();
}

void ReadOperation::blame(const PublicKey& source) {
  std::erase_if(sources_, [&](Source& each) {
    return each.contact.key == source && ++each.failures == kSourceFailures;
  });
}

// --- pages ---------------------------------------------------------------------------------------

bool ReadOperation::somebody_is_at(const std::optional<Id>& after) const {
  const Id place = after.value_or(Id{});
  return std::any_of(finds_.begin(), finds_.end(),
                     [&](const auto& find) {
                       return !find.second.overdue && find.second.start == place;
                     }) ||
         std::any_of(pages_.begin(), pages_.end(), [&](const auto& page) {
           return !page.second.overdue && page.second.after.value_or(Id{}) == place;
         });
}

void ReadOperation::ask_page(OperationHost& host, const std::optional<Id>& after) {
  const Contact source = sources_[pages_asked_++ % sources_.size()].contact;
  PageRequest page{lookup_.target(), std::nullopt};
  if (after)
    page.after = after->bytes();
  const uint64_t txid = host.request(id, source, page);
  pages_[txid] = {after, source, false};
}

// Every gap is being read from its beginning; if it is wide, from further places too.
void ReadOperation::plan(OperationHost& host) {
  if (sources_.empty())
    return;
  for (const RingCover::Gap& gap : cover_.gaps()) {
    if (pages_.size() >= Limits::kPagesInFlight || pages_asked_ >= kPagesPerRead)
      return;
    if (!somebody_is_at(gap.after))
      ask_page(host, gap.after);
  }
  while (pages_.size() < Limits::kPagesInFlight && pages_asked_ < kPagesPerRead) {
    const auto middle = where_to_split();
    if (!middle)
      return;
    ask_page(host, middle);
  }
}

std::optional<Id> ReadOperation::where_to_split() const {
  const double covered = cover_.fraction();
  if (covered <= 0 || seqs_.empty())
    return std::nullopt;
  std::set<Id> readers;
  for (const auto& [txid, find] : finds_)
    if (!find.overdue)
      readers.insert(find.start);
  for (const auto& [txid, page] : pages_)
    readers.insert(page.after.value_or(Id{}));
  RingCover::Gap widest{std::nullopt, Id{}};
  for (const RingCover::Gap& gap : cover_.gaps()) {
    RingCover::Gap part = gap;
    for (auto reader = readers.upper_bound(gap.after.value_or(Id{}));
         reader != readers.end() && *reader < gap.last; ++reader) {
      part.last = *reader;
      if (part.fraction() > widest.fraction())
        widest = part;
      part = {*reader, gap.last};
    }
    if (part.fraction() > widest.fraction())
      widest = part;
  }
  const double expected = static_cast<double>(seqs_.size()) * widest.fraction() / covered;
  if (expected < kRecordsPerPage) // one page may well hold it all
    return std::nullopt;
  const uint64_t first = widest.after.value_or(Id{}).words[0];
  return RingCover::at(first + (widest.last.words[0] - first) / 2);
}

void ReadOperation::check_cover() {
  const bool small = saw_all_.size() >= kAgreement && sources_.empty();
  if (covered_ || !(small || cover_.complete()))
    return;
  covered_ = true;
  listener_.on_covered();
}

void ReadOperation::complete(OperationHost&) {
  std::vector<Contact> closest;
  for (const Lookup::Found& found : lookup_.closest())
    closest.push_back(found.contact);
  listener_.done(std::move(closest));
}

// --- small ones ----------------------------------------------------------------------------------

void ClosestOperation::complete(OperationHost&) {
  std::vector<Contact> closest;
  for (const Lookup::Found& found : lookup_.closest())
    closest.push_back(found.contact);
  done_(std::move(closest));
}

void ExchangeOperation::start(OperationHost& host, const std::vector<Contact>&) {
  host.request(id, to_, std::move(request_));
}

void ExchangeOperation::on_answer(OperationHost&, const SentRequest&, const Header&,
                                  const Reply& reply) {
  reply_ = reply;
  finished_ = true;
}

void ExchangeOperation::complete(OperationHost&) {
  done_(reply_ ? &*reply_ : nullptr);
}

} // namespace lah::dht
