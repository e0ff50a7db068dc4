#include "dht/subscription.hpp"

#include <algorithm>

#include "dht/node.hpp"
#include "dht/record_digest.hpp"

namespace lah::dht {
namespace {
constexpr size_t kTellers = 3; // replicas listened to
constexpr size_t kChoice = 5;  // out of so many of the closest, so that listeners spread
constexpr Duration kReadDeadline = 5 * kSecond;
constexpr Duration kLookEvery = 150 * kSecond; // for nearer nodes
constexpr Duration kPatienceMin = kSecond;     // between looks while there is nobody to listen to
constexpr Duration kPatienceMax = 30 * kSecond;
constexpr Duration kCheckEvery = 5 * kSecond;
constexpr WallMs kAskAgainMs = 8'000;
constexpr size_t kStaleChecks = 8; // pages at a time
constexpr size_t kStalePerPage = 4;
constexpr size_t kListenAttempts = 2; // the first may lack a token
constexpr size_t kPageFailures = 3;   // in a row
constexpr size_t kSectorPages = Limits::kRecordsPerKey;

// Records are refreshed thrice in their lives. One that has passed this share of its life without
// was missed.
WallMs ask_time(WallMs heard, WallMs expiry) {
  return heard + (expiry - heard) * 3 / 5;
}

std::optional<PublicKey> before(PublicKey key) {
  for (size_t i = key.size(); i-- > 0;)
    if (key[i]-- != 0)
      return key;
  return std::nullopt;
}
} // namespace

Subscription::Subscription(Node& node, const Id& key, Find find)
    : node_(node), key_(key), find_(std::move(find)), patience_(kPatienceMin) {
  for (Record& record : node_.storage().get(key, node_.wall()))
    accept(std::move(record));
}

// --- records -------------------------------------------------------------------------------------

Subscription::Accepted Subscription::accept(Record record) {
  const WallMs wall = node_.wall();
  record.key = key_;
  if (record.expiry_ms <= wall || record.expiry_ms > wall + Limits::kRecordLifetimeMs)
    return Accepted::kRefused;
  const auto found = held_.find(record.owner);
  const bool known = found != held_.end() && found->second.record.expiry_ms > wall;
  if (known && found->second.record.seq >= record.seq)
    return Accepted::kNothing;
  if (found == held_.end() && held_.size() >= Limits::kRecordsPerKey)
    return Accepted::kRefused;
  if (!node_.verify(record))
    return Accepted::kRefused;
  const bool changed = !known || found->second.record.payload != record.payload;
  (changed ? changed_ : refreshed_).insert(record.owner);
  const uint64_t content = changed ? content_hash(record) : found->second.content;
  const WallMs ask = ask_time(wall, record.expiry_ms);
  const PublicKey owner = record.owner;
  held_.insert_or_assign(owner, Held{std::move(record), content, wall, ask});
  return changed ? Accepted::kChange : Accepted::kRefresh;
}

void Subscription::expire(WallMs wall) {
  std::erase_if(held_, [&](const auto& held) { return held.second.record.expiry_ms <= wall; });
}

void Subscription::on_stored(const Record& record) {
  accept(record);
}

bool Subscription::has_news() const {
  return covered_ && (!told_ || !changed_.empty() || !refreshed_.empty());
}

ListenEvent Subscription::everything() const {
  ListenEvent event{{}, {}, true};
  for (const auto& [owner, held] : held_)
    if (held.record.expiry_ms > node_.wall())
      event.changed.push_back(held.record);
  return event;
}

ListenEvent Subscription::take_news() {
  const std::set<PublicKey> changed = std::exchange(changed_, {});
  const std::set<PublicKey> refreshed = std::exchange(refreshed_, {});
  if (!std::exchange(told_, true))
    return everything();
  ListenEvent event;
  for (const PublicKey& owner : changed)
    if (const auto held = held_.find(owner); held != held_.end())
      event.changed.push_back(held->second.record);
  for (const PublicKey& owner : refreshed)
    if (const auto held = held_.find(owner); held != held_.end() && !changed.contains(owner))
      event.refreshed.push_back(held->second.record);
  return event;
}

std::optional<NotifyReply> Subscription::on_notify(const Contact& from,
                                                   const NotifyRequest& notify) {
  const Replica* teller = replica(from.key);
  if (teller == nullptr || teller->contact.endpoint != from.endpoint)
    return std::nullopt;
  NotifyReply reply{true, {}};
  for (const Record& record : notify.records)
    accept(record);
  for (const Refresh& refresh : notify.refreshes) {
    const auto held = held_.find(refresh.owner);
    if (held != held_.end() && held->second.record.seq >= refresh.seq)
      continue;
    if (held == held_.end() ||
        accept({key_, refresh.owner, refresh.seq, refresh.expiry_ms, held->second.record.payload,
                refresh.signature}) == Accepted::kRefused)
      reply.missing.push_back(refresh.owner);
  }
  return reply;
}

// --- time ----------------------------------------------------------------------------------------

void Subscription::on_timer(Time now, WallMs wall) {
  if (now >= look_at_ && !reading_ && !looking_) {
    if (covered_ && !replicas_.empty())
      look(now);
    else
      read(now);
  }
  for (Replica& replica : replicas_)
    if (now >= replica.renew_at)
      listen(replica);
  if (now >= check_at_) {
    check_at_ = now + kCheckEvery;
    expire(wall);
    ask_for_stale(wall);
  }
}

Time Subscription::next_deadline() const {
  Time next = std::min(reading_ || looking_ ? kNever : look_at_, check_at_);
  for (const Replica& replica : replicas_)
    next = std::min(next, replica.renew_at);
  return next;
}

// --- finding the replicas ------------------------------------------------------------------------

void Subscription::read(Time now) {
  reading_ = true;
  look_at_ = kNever;
  ReadOperation::Listener listener;
  listener.on_records = [find = find_](std::vector<Record> records) {
    if (Subscription* self = find())
      for (Record& record : records)
        self->accept(std::move(record));
  };
  listener.on_covered = [find = find_] {
    if (Subscription* self = find())
      self->covered_ = true;
  };
  listener.done = [find = find_](std::vector<Contact> closest) {
    if (Subscription* self = find())
      self->on_read(std::move(closest));
  };
  node_.start(now, std::make_unique<ReadOperation>(key_, node_.id(), node_.rng(), listener),
              now + kReadDeadline);
}

void Subscription::on_read(std::vector<Contact> closest) {
  reading_ = false;
  covered_ = true; // it is what there is
  if (check_at_ == kNever)
    check_at_ = node_.time() + kCheckEvery;
  on_closest(std::move(closest));
}

void Subscription::look(Time now) {
  looking_ = true;
  look_at_ = kNever;
  node_.start(now,
              std::make_unique<ClosestOperation>(key_, node_.id(),
                                                 [find = find_](std::vector<Contact> closest) {
                                                   if (Subscription* self = find())
                                                     self->on_closest(std::move(closest));
                                                 }),
              now + kReadDeadline);
}

void Subscription::on_closest(std::vector<Contact> closest) {
  looking_ = false;
  if (closest.empty()) {
    look_at_ = node_.time() + patience_;
    patience_ = std::min(2 * patience_, kPatienceMax);
    return;
  }
  const auto jitter = static_cast<Duration>(node_.rng().below(uint64_t{kLookEvery} / 4));
  look_at_ = node_.time() + kLookEvery - jitter;
  std::erase_if(replicas_, [&](const Replica& replica) {
    return std::none_of(closest.begin(), closest.end(), [&](const Contact& contact) {
      return contact.key == replica.contact.key && contact.endpoint == replica.contact.endpoint;
    });
  });
  std::erase_if(closest, [&](const Contact& contact) { return replica(contact.key) != nullptr; });
  candidates_ = std::move(closest);
  // The farthest come last in any case: newcomers push them out first.
  for (size_t i = std::min(kChoice, candidates_.size()); i > 1; --i)
    std::swap(candidates_[i - 1], candidates_[node_.rng().below(i)]);
  fill();
}

void Subscription::fill() {
  while (replicas_.size() < kTellers && !candidates_.empty()) {
    replicas_.push_back({candidates_.front(), false});
    candidates_.erase(candidates_.begin());
    if (replicas_.size() == 1)
      replicas_.front().refreshes = true;
    listen(replicas_.back());
  }
  choose_teller();
  if (replicas_.empty() && look_at_ != kNever) {
    look_at_ = std::min(look_at_, node_.time() + patience_);
    patience_ = std::min(2 * patience_, kPatienceMax);
  }
}

// --- listening -----------------------------------------------------------------------------------

Subscription::Replica* Subscription::replica(const PublicKey& key) {
  const auto found = std::find_if(replicas_.begin(), replicas_.end(),
                                  [&](const Replica& each) { return each.contact.key == key; });
  return found == replicas_.end() ? nullptr : &*found;
}

void Subscription::listen(Replica& replica) {
  replica.waiting = true;
  replica.renew_at = kNever;
  node_.start(node_.time(),
              std::make_unique<ExchangeOperation>(
                  replica.contact, ListenRequest{key_, Limits::kListenMs, replica.refreshes},
                  [find = find_, key = replica.contact.key](const Reply* reply) {
                    if (Subscription* self = find())
                      self->on_listening(key, reply);
                  }),
              kNever);
}

void Subscription::on_listening(const PublicKey& key, const Reply* reply) {
  Replica* teller = replica(key);
  if (teller == nullptr)
    return;
  const auto* granted = reply == nullptr ? nullptr : std::get_if<ListenReply>(reply);
  if (granted == nullptr && reply != nullptr && teller->attempts++ < kListenAttempts) {
    listen(*teller); // its answer brought the token that was missing
    return;
  }
  if (granted == nullptr || granted->lifetime_ms == 0) {
    lose(key);
    return;
  }
  patience_ = kPatienceMin;
  teller->waiting = false;
  teller->attempts = 1;
  const Duration lifetime = milliseconds(static_cast<int64_t>(granted->lifetime_ms));
  const auto jitter = static_cast<Duration>(node_.rng().below(static_cast<uint64_t>(lifetime) / 8));
  teller->renew_at = node_.time() + lifetime / 2 - jitter;
  compare(*teller, granted->digest);
}

void Subscription::lose(const PublicKey& key) {
  std::erase_if(replicas_, [&](const Replica& each) { return each.contact.key == key; });
  if (candidates_.empty())
    look_at_ = std::min(look_at_, node_.time() + kPatienceMin);
  fill();
}

void Subscription::choose_teller() {
  if (replicas_.empty() || std::any_of(replicas_.begin(), replicas_.end(),
                                       [](const Replica& each) { return each.refreshes; }))
    return;
  Replica& teller = replicas_.front();
  teller.refreshes = true;
  if (!teller.waiting)
    listen(teller);
  else
    teller.renew_at = node_.time(); // once more, after the one under way
}

void Subscription::stop() {
  for (const Replica& replica : replicas_)
    node_.start(node_.time(),
                std::make_unique<ExchangeOperation>(replica.contact, ListenRequest{key_, 0, false},
                                                    [](const Reply*) {}),
                kNever);
}

// --- what was missed -----------------------------------------------------------------------------

Digest Subscription::digest() const {
  Digest sums{};
  for (const auto& [owner, held] : held_)
    if (held.record.expiry_ms > node_.wall())
      sums[digest_sector(owner)] += held.content;
  return sums;
}

void Subscription::compare(Replica& replica, const Digest& theirs) {
  const Digest ours = digest();
  for (size_t sector = 0; sector < theirs.size(); ++sector) {
    // What it held when we read it we have, or have something newer.
    if (theirs[sector] == ours[sector] || theirs[sector] == replica.read[sector])
      continue;
    PublicKey first{};
    first[0] = static_cast<uint8_t>(sector << 5);
    read_sector({replica.contact, sector, before(first), theirs[sector], kSectorPages});
  }
}

void Subscription::read_sector(const SectorRead& read) {
  node_.start(node_.time(),
              std::make_unique<ExchangeOperation>(read.from, PageRequest{key_, read.after},
                                                  [find = find_, read](const Reply* reply) {
                                                    if (Subscription* self = find())
                                                      self->on_page(read, reply);
                                                  }),
              kNever);
}

void Subscription::on_page(SectorRead read, const Reply* reply) {
  const auto* page = reply == nullptr ? nullptr : std::get_if<PageReply>(reply);
  if (page == nullptr) {
    if (++read.failures < kPageFailures && replica(read.from.key) != nullptr)
      read_sector(read);
    return;
  }
  for (const Record& record : page->records)
    accept(record);
  const PublicKey* last = page->records.empty() ? nullptr : &page->records.back().owner;
  const bool progress = last != nullptr && (!read.after || *last > *read.after);
  if (page->more && progress && digest_sector(*last) <= read.sector) {
    if (--read.pages == 0)
      return;
    read.after = *last;
    read.failures = 0;
    read_sector(read);
  } else if (Replica* teller = replica(read.from.key)) {
    teller->read[read.sector] = read.sum;
  }
}

// Single pages, elsewhere than where the refreshes should have come from. Each is taken to hold the
// next few owners too.
void Subscription::ask_for_stale(WallMs wall) {
  if (replicas_.empty())
    return;
  const Contact from = replicas_[++turn_ % replicas_.size()].contact;
  size_t stale = 0;
  for (auto& [owner, held] : held_) {
    if (held.ask_ms > wall || held.record.is_tombstone())
      continue;
    if (stale == kStaleChecks * kStalePerPage)
      return;
    held.ask_ms = wall + kAskAgainMs;
    if (stale++ % kStalePerPage == 0)
      read_sector({from, digest_sector(owner), before(owner), 0, 1});
  }
}

} // namespace lah::dht
