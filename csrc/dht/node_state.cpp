#include "dht/node_state.hpp"

#include <algorithm>

#include "wire/reader.hpp"
#include "wire/writer.hpp"

namespace lah::dht {
namespace {

constexpr std::string_view kMagic = "lah node";
constexpr uint8_t kVersion = 1;
constexpr size_t kHeadBytes = kMagic.size() + 1 + sizeof(crypto::Digest);
constexpr size_t kDocumentBytes = 2048;
enum Section : uint64_t { kHead = 0, kContact = 1, kRecord = 2 };

// --- writing -------------------------------------------------------------------------------------

void put(Buffer& out, const wire::Writer& document) {
  const size_t size = document.view().size();
  out.push_back(static_cast<std::byte>(size >> 8));
  out.push_back(static_cast<std::byte>(size & 0xff));
  append(out, document.view());
}

void put_record(Buffer& out, const Record& record) {
  wire::Writer document;
  document.array(7).u64(kRecord).bin(as_bytes(record.key.bytes())).bin(as_bytes(record.owner));
  document.u64(record.seq).u64(record.expiry_ms).bin(record.payload);
  document.bin(as_bytes(record.signature));
  put(out, document);
}

void put_contact(Buffer& out, const NodeState::Known& known) {
  wire::Writer document;
  document.array(3).u64(kContact).bin(encode_contact(known.contact));
  document.u64(known.rtt < 0 ? 0 : static_cast<uint64_t>(known.rtt / kMicrosecond) + 1);
  put(out, document);
}

// --- reading -------------------------------------------------------------------------------------

constexpr uint64_t kRttMaxUs = 60'000'000;

void read_head(wire::Reader& in, NodeState& state) {
  state.network_id = in.str(Limits::kNetworkIdBytes);
  state.seq = in.u64();
  const ByteView seed = in.bin(0, 32);
  if (seed.size() == 32)
    std::memcpy(state.identity_seed.emplace().data(), seed.data(), 32);
  else if (!seed.empty())
    in.fail();
}

void read_contact(wire::Reader& in, NodeState& state) {
  const Result<Contact> contact = decode_contact(in.bin(1, kContactBytesMax));
  const uint64_t rtt = in.u64(kRttMaxUs);
  if (!contact || state.contacts.size() >= Limits::kSavedContacts)
    return in.fail();
  state.contacts.push_back(
      {*contact, rtt == 0 ? -1 : static_cast<Duration>(rtt - 1) * kMicrosecond});
}

void read_record(wire::Reader& in, NodeState& state) {
  Record record;
  record.key = Id::from_bytes(in.fixed<32>());
  record.owner = in.fixed<32>();
  record.seq = in.u64();
  record.expiry_ms = in.u64();
  const ByteView payload = in.bin(0, Limits::kRecordPayloadBytes);
  record.payload.assign(payload.begin(), payload.end());
  record.signature = in.fixed<64>();
  if (state.records.size() >= Limits::kSavedRecords)
    return in.fail();
  state.records.push_back(std::move(record));
}

bool read_document(ByteView bytes, bool first, NodeState& state) {
  Result<wire::Reader> in = wire::Reader::parse(bytes);
  if (!in)
    return false;
  in->enter(3, 16);
  const uint64_t section = in->u64(UINT8_MAX);
  if (!in->ok() || (section == kHead) != first)
    return false;
  if (section == kHead)
    read_head(*in, state);
  else if (section == kContact)
    read_contact(*in, state);
  else if (section == kRecord)
    read_record(*in, state);
  return in->ok(); // a section of a later version is passed over
}

Error damaged(const std::string& what) {
  return {ErrorCode::kInvalidArgument, "node state: " + what};
}

} // namespace

Buffer encode_state(const NodeState& state) {
  Buffer body;
  wire::Writer head;
  head.array(4).u64(kHead).str(state.network_id).u64(state.seq);
  head.bin(state.identity_seed ? as_bytes(*state.identity_seed) : ByteView{});
  put(body, head);
  const size_t contacts = std::min(state.contacts.size(), Limits::kSavedContacts);
  for (size_t i = 0; i < contacts; ++i)
    put_contact(body, state.contacts[i]);
  const size_t records = std::min(state.records.size(), Limits::kSavedRecords);
  for (size_t i = 0; i < records; ++i)
    put_record(body, state.records[i]);

  Buffer out;
  append(out, as_bytes(kMagic));
  out.push_back(static_cast<std::byte>(kVersion));
  append(out, as_bytes(crypto::sha256({body})));
  append(out, body);
  return out;
}

Result<NodeState> decode_state(ByteView file) {
  if (file.size() > Limits::kStateBytes)
    return damaged("larger than " + std::to_string(Limits::kStateBytes) + " bytes");
  if (file.size() < kHeadBytes || as_text(file.first(kMagic.size())) != kMagic)
    return damaged("not a file of this program");
  if (const auto version = std::to_integer<int>(file[kMagic.size()]); version != kVersion)
    return damaged("version " + std::to_string(version) + ", expected " + std::to_string(kVersion));
  ByteView body = file.subspan(kHeadBytes);
  const crypto::Digest sum = crypto::sha256({body});
  if (!std::ranges::equal(file.subspan(kMagic.size() + 1, sum.size()), as_bytes(sum)))
    return damaged("damaged or cut short: its checksum does not match");
  NodeState state;
  for (bool first = true; first || !body.empty(); first = false) {
    const size_t size =
        body.size() < 2 ? SIZE_MAX
                        : std::to_integer<size_t>(body[0]) << 8 | std::to_integer<size_t>(body[1]);
    if (size > std::min(kDocumentBytes, body.size() - 2) ||
        !read_document(body.subspan(2, size), first, state))
      return damaged("malformed");
    body = body.subspan(2 + size);
  }
  return state;
}

} // namespace lah::dht
