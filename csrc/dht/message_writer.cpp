#include "dht/message_format.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

template <class... Cases> struct Overload : Cases... { using Cases::operator()...; };
template <class... Cases> Overload(Cases...) -> Overload<Cases...>;

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

} // namespace

Buffer encode(const Header& header, const Request& body) {
  wire::Writer out(Limits::kDatagramBytes);
  const uint64_t code =
      std::visit([](const auto& request) { return uint64_t(request.kKind); }, body);
  std::visit(Overload{
                 [&](const PingRequest&) { put_header(out, code, header, 0); },
                 [&](const FindRequest& find) {
                   put_header(out, code, header, 4);
                   out.array(find.keys.size());
                   for (const Id& key : find.keys)
                     put_id(out, key);
                   out.boolean(find.want_records).bin(Buffer(find.padding)).u64(find.start);
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
                 [&](const ListenRequest& listen) {
                   put_header(out, code, header, 3);
                   put_id(out, listen.key);
                   out.u64(listen.lifetime_ms).boolean(listen.refreshes);
                 },
                 [&](const NotifyRequest& notify) {
                   put_header(out, code, header, 3);
                   put_id(out, notify.key);
                   put_records(out, notify.records, false);
                   out.array(notify.refreshes.size());
                   for (const Refresh& refresh : notify.refreshes) {
                     out.array(4).bin(as_bytes(refresh.owner)).u64(refresh.seq);
                     out.u64(refresh.expiry_ms).bin(as_bytes(refresh.signature));
                   }
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
                 [&](const ListenReply& listen) {
                   put_header(out, code, header, 2);
                   out.u64(listen.lifetime_ms).array(listen.digest.size());
                   for (const uint64_t sum : listen.digest)
                     out.u64(sum);
                 },
                 [&](const NotifyReply& notify) {
                   put_header(out, code, header, 2);
                   out.boolean(notify.listening).array(notify.missing.size());
                   for (const PublicKey& owner : notify.missing)
                     out.bin(as_bytes(owner));
                 },
                 [&](const ErrorReply& error) {
                   put_header(out, code, header, 1);
                   out.u64(uint64_t(error.code));
                 },
             },
             body);
  return out.take();
}

} // namespace lah::dht
