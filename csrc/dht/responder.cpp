#include "dht/responder.hpp"

#include <algorithm>

#include "base/subnet.hpp"
#include "crypto/sealed_packet.hpp"

namespace lah::dht {
namespace {

constexpr uint64_t kSurveyMs = 10'000;

size_t take(size_t& budget, size_t bytes) {
  bytes = std::min(budget, bytes);
  budget -= bytes;
  return bytes;
}

size_t wire_bytes(const Contact& contact) {
  return (contact.endpoint.is_v4() ? 40 + 6 + 2 : 40 + 18 + 2) + 1; // and its name in the entry
}

// Contacts that fit `budget`, which shrinks by what they cost.
std::vector<Contact> fit(std::vector<Contact> contacts, size_t& budget) {
  size_t count = 0;
  while (count < contacts.size() && wire_bytes(contacts[count]) <= budget)
    budget -= wire_bytes(contacts[count++]);
  contacts.resize(count);
  return contacts;
}

std::vector<Record> copies(const std::vector<const Record*>& records) {
  std::vector<Record> result;
  for (const Record* record : records)
    result.push_back(*record);
  return result;
}

constexpr size_t kContactsBesideRecords = Limits::kReplicas / 2;

// One page of a key's records that begins at the owners whose keys start with `start`, and goes
// once round the ring.
Storage::Page page_from(const Storage& storage, const Id& key, uint8_t start, WallMs wall,
                        size_t budget) {
  if (start == 0)
    return storage.page(key, nullptr, wall, budget, kRecordWireOverhead);
  PublicKey before;
  before.fill(0xff);
  before[0] = static_cast<uint8_t>(start - 1);
  Storage::Page page = storage.page(key, &before, wall, budget, kRecordWireOverhead);
  if (page.more)
    return page;
  for (const Record* record : page.records)
    take(budget, record_wire_bytes(*record));
  const Storage::Page rest = storage.page(key, nullptr, wall, budget, kRecordWireOverhead);
  page.more = rest.more;
  for (const Record* record : rest.records) {
    if (record->owner[0] >= start) {
      page.more = false; // round once
      break;
    }
    page.records.push_back(record);
  }
  return page;
}

} // namespace

Reply Responder::answer(const Asker& asker, const Request& request, size_t request_bytes,
                        WallMs wall) {
  size_t datagram = Limits::kDatagramBytes;
  if (!asker.proven)
    datagram = std::min(datagram, Limits::kAmplification * request_bytes);
  const size_t budget = datagram - std::min(datagram, crypto::kPacketOverhead +
                                                          asker.reserved); // of the reply's body
  if (const auto* find_request = std::get_if<FindRequest>(&request))
    return find(asker, *find_request, budget, wall);
  if (const auto* store_request = std::get_if<StoreRequest>(&request))
    return store(asker, *store_request, wall);
  if (const auto* page_request = std::get_if<PageRequest>(&request))
    return page(*page_request, budget, wall);
  return ping(asker);
}

PingReply Responder::ping(const Asker& asker) const {
  return {asker.contact.endpoint};
}

FindReply Responder::find(const Asker& asker, const FindRequest& request, size_t budget,
                          WallMs wall) const {
  FindReply reply{asker.contact.endpoint, {}};
  take(budget, kFindReplyWireBytes + request.keys.size() * kFindEntryWireBytes);
  for (size_t i = 0; i < request.keys.size(); ++i) {
    FindReply::Entry entry;
    size_t share = budget / (request.keys.size() - i);
    budget -= share;
    std::vector<Contact> near = table_.closest(request.keys[i], Limits::kDiverseCandidates);
    SubnetLimit subnets(Limits::kResultsPerSubnet);
    std::erase_if(near, [&](const Contact& contact) {
      return contact.id == asker.contact.id || !subnets.take(contact.endpoint);
    });
    near.resize(std::min(near.size(), Limits::kFindContacts));
    if (request.want_records) {
      // A holder of many records is near the key already: few contacts are enough there.
      size_t reserved = 0;
      for (size_t n = 0; n < std::min(near.size(), kContactsBesideRecords); ++n)
        reserved += wire_bytes(near[n]);
      const size_t room = share - std::min(share, reserved);
      const Storage::Page first = page_from(storage_, request.keys[i], request.start, wall, room);
      entry.records = copies(first.records);
      entry.more = first.more;
      for (const Record& record : entry.records)
        take(share, record_wire_bytes(record));
    }
    entry.contacts = fit(std::move(near), share);
    budget += share;
    reply.entries.push_back(std::move(entry));
  }
  return reply;
}

// Which keys are ours changes slowly, and matters only to those who store.
void Responder::survey(WallMs wall) {
  if (wall >= surveyed_at_ && wall - surveyed_at_ < kSurveyMs)
    return;
  surveyed_at_ = wall;
  storage_.set_region(Region(own_, table_.closest(own_, Region::kScales)));
}

StoreReply Responder::store(const Asker& asker, const StoreRequest& request, WallMs wall) {
  StoreReply reply;
  if (asker.proven)
    survey(wall);
  for (const Record& record : request.records) {
    if (!asker.proven) {
      reply.outcomes.push_back({Verdict::kBadToken, 0});
      continue;
    }
    if (!admission_.admits(record.owner, record.certificate, wall)) {
      reply.outcomes.push_back({Verdict::kNotAdmitted, 0});
      continue;
    }
    const Storage::PutResult put = storage_.put(record, asker.contact.endpoint, wall, verifier_);
    reply.outcomes.push_back({put.verdict, put.seq});
    if (put.verdict == Verdict::kStored && on_stored)
      on_stored(record, put.changed);
  }
  return reply;
}

PageReply Responder::page(const PageRequest& request, size_t budget, WallMs wall) const {
  take(budget, kPageWireBytes);
  const Storage::Page page = storage_.page(request.key, request.after ? &*request.after : nullptr,
                                           wall, budget, kRecordWireOverhead);
  return {copies(page.records), page.more};
}

} // namespace lah::dht
