#include "dht/message_format.hpp"
#include "wire/reader.hpp"

namespace lah::dht {
namespace {

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
  find.start = static_cast<uint8_t>(in.u64(255));
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

ListenRequest read_listen_request(wire::Reader& in) {
  return {read_id(in), in.u64(Limits::kListenMs), in.boolean()}; // in this order
}

ListenReply read_listen_reply(wire::Reader& in) {
  ListenReply listen{in.u64(Limits::kListenMs)};
  in.enter(listen.digest.size(), listen.digest.size());
  for (uint64_t& sum : listen.digest)
    sum = in.u64();
  in.leave();
  return listen;
}

NotifyRequest read_notify_request(wire::Reader& in) {
  NotifyRequest notify{read_id(in)};
  notify.records = read_records(in, false);
  const size_t count = in.enter(0, kArrayMax);
  for (size_t i = 0; i < count && in.ok(); ++i) {
    in.enter(4, kArrayMax);
    notify.refreshes.push_back({in.fixed<32>(), in.u64(), in.u64(), in.fixed<64>()});
    in.leave();
  }
  in.leave();
  return notify;
}

NotifyReply read_notify_reply(wire::Reader& in) {
  NotifyReply notify{in.boolean()};
  const size_t count = in.enter(0, kArrayMax);
  for (size_t i = 0; i < count && in.ok(); ++i)
    notify.missing.push_back(in.fixed<32>());
  in.leave();
  return notify;
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
  case MessageKind::kListen:
    return read_listen_request(in);
  case MessageKind::kNotify:
    return read_notify_request(in);
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
  case MessageKind::kListen:
    return read_listen_reply(in);
  case MessageKind::kNotify:
    return read_notify_reply(in);
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
