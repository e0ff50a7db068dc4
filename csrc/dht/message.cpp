#include "dht/message.hpp"

#include <algorithm>

#include "wire/reader.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

constexpr uint64_t kReplyBit = 0x40;
constexpr uint64_t kClientModeFlag = 1;
constexpr size_t kHeaderFields = 7;
constexpr size_t kArrayMax = 64; // elements of any list in a message

template <class... Cases> struct Overload : Cases... { using Cases::operator()...; };
template <class... Cases> Overload(Cases...) -> Overload<Cases...>;

// --- writing -------------------------------------------------------------------------------------

void put_header(wire::Writer& out, uint64_t code, const Header& header, size_t fields) {
  out.array(kHeaderFields + fields).u64(code).u64(header.txid);
  out.u64(header.client_mode ? kClientModeFlag : 0).bin(as_bytes(header.puzzle));
  out.bin(header.token ? as_bytes(*header.token) : ByteView{});
  out.u64(header.wall_ms).bin(header.certificate);
}

void put_id(wire::Writer& out, const Id& id) {
  out.bin(as_bytes(id.bytes()));
}

void put_contact(wire::Writer& out, const Contact& contact) {
  std::array<std::byte, kContactBytesMax> bytes;
  out.bin(ByteView(bytes).first(encode_contact(contact, bytes)));
}

void put_record(wire::Writer& out, const Record& record, bool with_key) {
  out.array((with_key ? 6U : 5U) + (record.certificate.empty() ? 0U : 1U));
  if (with_key)
    put_id(out, record.key);
  out.bin(as_bytes(record.owner)).u64(record.seq).u64(record.expiry_ms);
  out.bin(record.payload).bin(as_bytes(record.signature));
  if (!record.certificate.empty())
    out.bin(record.certificate);
}

void put_records(wire::Writer& out, const std::vector<Record>& records, bool with_key) {
  out.array(records.size());
  for (const Record& record : records)
    put_record(out, record, with_key);
}

void put_find_reply(wire::Writer& out, const FindReply& find) {
  std::vector<const Contact*> pool;
  std::vector<uint64_t> named; // by the entries in turn, as places in the pool
  for (const FindReply::Entry& entry : find.entries)
    for (const Contact& contact : entry.contacts) {
      const auto known = std::find_if(pool.begin(), pool.end(), [&](const Contact* pooled) {
        return pooled->id == contact.id && pooled->endpoint == contact.endpoint;
      });
      named.push_back(static_cast<uint64_t>(known - pool.begin()));
      if (known == pool.end())
        pool.push_back(&contact);
    }
  out.bin(encode_endpoint(find.observed)).array(pool.size());
  for (const Contact* contact : pool)
    put_contact(out, *contact);
  out.array(find.entries.size());
  auto next = named.begin();
  for (const FindReply::Entry& entry : find.entries) {
    out.array(3).array(entry.contacts.size());
    for (size_t i = 0; i < entry.contacts.size(); ++i)
      out.u64(*next++);
    put_records(out, entry.records, false);
    out.boolean(entry.more);
  }
}

// --- reading -------------------------------------------------------------------------------------

Id read_id(wire::Reader& in) {
  return Id::from_bytes(in.fixed<32>());
}

Record read_record(wire::Reader& in, bool with_key) {
  Record record;
  const size_t fields = with_key ? 6 : 5;
  const bool certified = in.enter(fields, kArrayMax) > fields;
  if (with_key)
    record.key = read_id(in);
  record.owner = in.fixed<32>();
  record.seq = in.u64();
  record.expiry_ms = in.u64();
  const ByteView payload = in.bin(0, Limits::kRecordPayloadBytes);
  record.payload.assign(payload.begin(), payload.end());
  record.signature = in.fixed<64>();
  if (certified) {
    const ByteView certificate = in.bin(0, Limits::kCertificateBytes);
    record.certificate.assign(certificate.begin(), certificate.end());
  }
  in.leave();
  return record;
}

std::vector<Record> read_records(wire::Reader& in, bool with_key) {
  std::vector<Record> records;
  const size_t count = in.enter(0, with_key ? Limits::kStoreBatch : kArrayMax);
  for (size_t i = 0; i < count && in.ok(); ++i)
    records.push_back(read_record(in, with_key));
  in.leave();
  return records;
}

Endpoint read_endpoint(wire::Reader& in) {
  const Result<Endpoint> endpoint = decode_endpoint(in.bin(6, 18));
  if (!endpoint)
    in.fail();
  return endpoint ? *endpoint : Endpoint{};
}

FindRequest read_find_request(wire::Reader& in) {
  FindRequest find;
  const size_t count = in.enter(1, Limits::kFindKeys);
  for (size_t i = 0; i < count && in.ok(); ++i)
    find.keys.push_back(read_id(in));
  in.leave();
  find.want_records = in.boolean();
  find.padding = in.bin(0, Limits::kDatagramBytes).size();
  return find;
}

std::vector<Contact> read_contacts(wire::Reader& in) {
  std::vector<Contact> contacts;
  const size_t count = in.enter(0, Limits::kFindReplyContacts);
  contacts.reserve(count);
  for (size_t i = 0; i < count && in.ok(); ++i)
    if (const auto contact = decode_contact(in.bin(1, kContactBytesMax)))
      contacts.push_back(*contact);
    else
      in.fail();
  in.leave();
  return contacts;
}

FindReply::Entry read_find_entry(wire::Reader& in, const std::vector<Contact>& pool) {
  FindReply::Entry entry;
  in.enter(3, kArrayMax);
  const size_t contacts = in.enter(0, std::min(Limits::kFindContacts, pool.size()));
  entry.contacts.reserve(contacts);
  for (size_t i = 0; i < contacts && in.ok(); ++i)
    if (const uint64_t place = in.u64(pool.size() - 1); in.ok())
      entry.contacts.push_back(pool[static_cast<size_t>(place)]);
  in.leave();
  entry.records = read_records(in, false);
  entry.more = in.boolean();
  in.leave();
  return entry;
}

FindReply read_find_reply(wire::Reader& in) {
  FindReply find;
  find.observed = read_endpoint(in);
  std::vector<Contact> pool = read_contacts(in);
  const size_t count = in.enter(1, Limits::kFindKeys);
  for (size_t i = 0; i < count && in.ok(); ++i)
    find.entries.push_back(read_find_entry(in, pool));
  in.leave();
  return find;
}

StoreReply read_store_reply(wire::Reader& in) {
  StoreReply store;
  const size_t count = in.enter(0, Limits::kStoreBatch);
  for (size_t i = 0; i < count && in.ok(); ++i) {
    in.enter(2, kArrayMax);
    const auto verdict = static_cast<Verdict>(in.u64(kVerdictMax));
    store.outcomes.push_back({verdict, in.u64()});
    in.leave();
  }
  in.leave();
  return store;
}

PageRequest read_page_request(wire::Reader& in) {
  PageRequest page{read_id(in), std::nullopt};
  const ByteView after = in.bin(0, 32);
  if (after.size() == 32)
    std::memcpy(page.after.emplace().data(), after.data(), 32);
  else if (!after.empty())
    in.fail();
  return page;
}

PageReply read_page_reply(wire::Reader& in) {
  PageReply page{read_records(in, false), false};
  page.more = in.boolean();
  return page;
}

ObserveRequest read_observe_request(wire::Reader& in) {
  ObserveRequest observe;
  observe.step = static_cast<ObserveRequest::Step>(in.u64(2));
  observe.nonce = in.u64();
  const ByteView target = in.bin(0, kContactBytesMax);
  if ((observe.step == ObserveRequest::Step::kPassOn) == target.empty()) {
    in.fail();
  } else if (!target.empty()) {
    const Result<Contact> contact = decode_contact(target);
    contact ? void(observe.target = *contact) : in.fail();
  }
  observe.padding = in.bin(0, Limits::kDatagramBytes).size();
  return observe;
}

std::optional<Request> read_request(wire::Reader& in, MessageKind kind) {
  switch (kind) {
  case MessageKind::kPing:
    return PingRequest{};
  case MessageKind::kFind:
    return read_find_request(in);
  case MessageKind::kStore:
    return StoreRequest{read_records(in, true)};
  case MessageKind::kGetPage:
    return read_page_request(in);
  case MessageKind::kObserve:
    return read_observe_request(in);
  default:
    return std::nullopt;
  }
}

std::optional<Reply> read_reply(wire::Reader& in, MessageKind kind) {
  switch (kind) {
  case MessageKind::kPing:
    return PingReply{read_endpoint(in)};
  case MessageKind::kFind:
    return read_find_reply(in);
  case MessageKind::kStore:
    return read_store_reply(in);
  case MessageKind::kGetPage:
    return read_page_reply(in);
  case MessageKind::kObserve:
    return ObserveReply{in.u64(kArrayMax)};
  case MessageKind::kError:
    return ErrorReply{static_cast<ErrorCode>(in.u64(255))};
  default:
    return std::nullopt;
  }
}

Header read_header(wire::Reader& in) {
  Header header;
  header.txid = in.u64();
  header.client_mode = (in.u64() & kClientModeFlag) != 0;
  header.puzzle = in.fixed<8>();
  const ByteView token = in.bin(0, 16);
  if (token.size() == 16)
    std::memcpy(header.token.emplace().data(), token.data(), 16);
  else if (!token.empty())
    in.fail();
  header.wall_ms = in.u64();
  const ByteView certificate = in.bin(0, Limits::kCertificateBytes);
  header.certificate.assign(certificate.begin(), certificate.end());
  return header;
}

} // namespace

Buffer encode(const Header& header, const Request& body) {
  wire::Writer out(Limits::kDatagramBytes);
  const uint64_t code =
      std::visit([](const auto& request) { return uint64_t(request.kKind); }, body);
  std::visit(Overload{
                 [&](const PingRequest&) { put_header(out, code, header, 0); },
                 [&](const FindRequest& find) {
                   put_header(out, code, header, 3);
                   out.array(find.keys.size());
                   for (const Id& key : find.keys)
                     put_id(out, key);
                   out.boolean(find.want_records).bin(Buffer(find.padding));
                 },
                 [&](const StoreRequest& store) {
                   put_header(out, code, header, 1);
                   put_records(out, store.records, true);
                 },
                 [&](const PageRequest& page) {
                   put_header(out, code, header, 2);
                   put_id(out, page.key);
                   out.bin(page.after ? as_bytes(*page.after) : ByteView{});
                 },
                 [&](const ObserveRequest& observe) {
                   put_header(out, code, header, 4);
                   out.u64(uint64_t(observe.step)).u64(observe.nonce);
                   out.bin(observe.target ? encode_contact(*observe.target) : Buffer{});
                   out.bin(Buffer(observe.padding));
                 },
             },
             body);
  return out.take();
}

Buffer encode(const Header& header, const Reply& body) {
  wire::Writer out(Limits::kDatagramBytes);
  const uint64_t code =
      kReplyBit | std::visit([](const auto& reply) { return uint64_t(reply.kKind); }, body);
  std::visit(Overload{
                 [&](const PingReply& ping) {
                   put_header(out, code, header, 1);
                   out.bin(encode_endpoint(ping.observed));
                 },
                 [&](const FindReply& find) {
                   put_header(out, code, header, 3);
                   put_find_reply(out, find);
                 },
                 [&](const StoreReply& store) {
                   put_header(out, code, header, 1);
                   out.array(store.outcomes.size());
                   for (const StoreReply::Outcome& outcome : store.outcomes)
                     out.array(2).u64(uint64_t(outcome.verdict)).u64(outcome.seq);
                 },
                 [&](const PageReply& page) {
                   put_header(out, code, header, 2);
                   put_records(out, page.records, false);
                   out.boolean(page.more);
                 },
                 [&](const ObserveReply& observe) {
                   put_header(out, code, header, 1);
                   out.u64(observe.others);
                 },
                 [&](const ErrorReply& error) {
                   put_header(out, code, header, 1);
                   out.u64(uint64_t(error.code));
                 },
             },
             body);
  return out.take();
}

Result<std::variant<RequestMessage, ReplyMessage, UnknownRequest>> decode(ByteView plaintext,
                                                                          const Awaited& awaited) {
  using Decoded = std::variant<RequestMessage, ReplyMessage, UnknownRequest>;
  const Error malformed{ErrorCode::kProtocol, "malformed DHT message"};
  Result<wire::Reader> parsed = wire::Reader::parse(plaintext);
  if (!parsed)
    return parsed.error();
  wire::Reader& in = *parsed;
  in.enter(kHeaderFields, kArrayMax);
  const uint64_t code = in.u64(255);
  const Header header = read_header(in);
  if (!in.ok())
    return malformed;
  const auto kind = static_cast<MessageKind>(code & ~kReplyBit);
  if ((code & kReplyBit) != 0) {
    if (awaited && !awaited(header.txid))
      return Decoded(ReplyMessage{header, ErrorReply{}});
    std::optional<Reply> reply = read_reply(in, kind);
    if (!reply || !in.ok())
      return malformed;
    return Decoded(ReplyMessage{header, std::move(*reply)});
  }
  std::optional<Request> request = read_request(in, kind);
  if (!request)
    return Decoded(UnknownRequest{header});
  if (!in.ok())
    return malformed;
  return Decoded(RequestMessage{header, std::move(*request)});
}

} // namespace lah::dht
