// Every DHT message, declared once. A message is one msgpack array
//   [code, txid, flags, puzzle, token, wall_ms, certificate, fields...]
// inside a sealed packet. Elements a newer peer appends are ignored. Requests are idempotent.
#pragma once

#include <functional>
#include <optional>
#include <variant>

#include "dht/contact.hpp"
#include "dht/record.hpp"
#include "dht/token.hpp"

namespace lah::dht {

enum class MessageKind : uint8_t {
  kPing = 1,
  kFind = 2,
  kStore = 3,
  kGetPage = 4,
  kListen = 5,
  kNotify = 6,
  kObserve = 7,
  kError = 31, // replies only
};

struct PingRequest {
  static constexpr MessageKind kKind = MessageKind::kPing;
};

struct PingReply {
  static constexpr MessageKind kKind = MessageKind::kPing;
  Endpoint observed; // the asker's address as the answerer sees it
};

// Which nodes are near these keys, and which records lie under them.
struct FindRequest {
  static constexpr MessageKind kKind = MessageKind::kFind;
  std::vector<Id> keys;
  bool want_records = false;
  size_t padding = 0; // bytes of zeros, so that an unproven address may get a full reply
  // Records of owners whose keys begin with this byte or a higher one come first, then the others:
  // questions to several replicas bring different records.
  uint8_t start = 0;
};

struct FindReply {
  static constexpr MessageKind kKind = MessageKind::kFind;
  struct Entry { // for each key of the request, in its order
    std::vector<Contact> contacts;
    std::vector<Record> records;
    bool more = false; // records are left: ask with kGetPage for those behind the last owner here
  };
  Endpoint observed;
  std::vector<Entry> entries;
};

struct StoreRequest {
  static constexpr MessageKind kKind = MessageKind::kStore;
  std::vector<Record> records;
};

struct StoreReply {
  static constexpr MessageKind kKind = MessageKind::kStore;
  struct Outcome { // for each record of the request, in its order
    Verdict verdict;
    uint64_t seq; // the one the answerer now holds
  };
  std::vector<Outcome> outcomes;
};

struct PageRequest {
  static constexpr MessageKind kKind = MessageKind::kGetPage;
  Id key;
  std::optional<PublicKey> after; // the last owner already known
};

struct PageReply {
  static constexpr MessageKind kKind = MessageKind::kGetPage;
  std::vector<Record> records; // their key is the request's
  bool more = false;
};

// Whether strangers can reach the asker: the one asked passes the nonce on to others, who send it
// to the asker. Each step is larger than the next, so nothing is amplified.
struct ObserveRequest {
  static constexpr MessageKind kKind = MessageKind::kObserve;
  enum class Step : uint8_t {
    kAsk = 0,
    kPassOn = 1,
    kDialBack = 2
  }; // only the first two get replies
  Step step = Step::kAsk;
  uint64_t nonce = 0;
  std::optional<Contact> target; // whom to dial back; in kPassOn alone
  size_t padding = 0;
};

struct ObserveReply {
  static constexpr MessageKind kKind = MessageKind::kObserve;
  size_t others = 0; // that it was passed on to
};

// What a key holds, without when it expires: by the top bits of the owner's key, the sum of the
// hashes of owner and payload of every live record. Refreshes leave it as it is.
using Digest = std::array<uint64_t, Limits::kDigestSectors>;

// Tell me what changes under this key. Needs a token: it proves that the listener's address is its
// own.
struct ListenRequest {
  static constexpr MessageKind kKind = MessageKind::kListen;
  Id key;
  uint64_t lifetime_ms = 0; // at most Limits::kListenMs; 0 ends it
  bool refreshes = false;   // also of records that changed nothing but when they expire
};

struct ListenReply {
  static constexpr MessageKind kKind = MessageKind::kListen;
  uint64_t lifetime_ms = 0; // granted; 0 if there is no room
  Digest digest{};          // of what the answerer holds
};

// A record of which the listener knows all but this: it has the payload already.
struct Refresh {
  PublicKey owner{};
  uint64_t seq = 0;
  WallMs expiry_ms = 0;
  crypto::Signature signature{};
  bool operator==(const Refresh&) const = default;
};

struct NotifyRequest {
  static constexpr MessageKind kKind = MessageKind::kNotify;
  Id key;
  std::vector<Record> records = {}; // their key is the request's
  std::vector<Refresh> refreshes = {};
};

struct NotifyReply {
  static constexpr MessageKind kKind = MessageKind::kNotify;
  bool listening = false;              // false: send no more
  std::vector<PublicKey> missing = {}; // owners whose refreshes fit nothing the listener has
};

struct ErrorReply {
  static constexpr MessageKind kKind = MessageKind::kError;
  ErrorCode code = ErrorCode::kProtocol;
};

using Request = std::variant<PingRequest, FindRequest, StoreRequest, PageRequest, ListenRequest,
                             NotifyRequest, ObserveRequest>;
using Reply = std::variant<PingReply, FindReply, StoreReply, PageReply, ListenReply, NotifyReply,
                           ObserveReply, ErrorReply>;

struct Header {
  uint64_t txid = 0;
  bool client_mode = false; // the sender asks but does not serve: never put it into a table
  PuzzleNonce puzzle{};
  // Request: what the receiver last gave us. Reply: what to send along next time.
  std::optional<Token> token;
  // The sender's clock as its machine has it, corrected by nothing it learnt from others: else two
  // nodes that correct each other could drift together.
  WallMs wall_ms = 0;
  // Of admission, where the receiver may not know it yet; at most Limits::kCertificateBytes. It has
  // no room beside a record: STORE relies on the one its FIND carried.
  Buffer certificate = {};
};

struct RequestMessage {
  Header header;
  Request body;
};

struct ReplyMessage {
  Header header;
  Reply body;
};

using Message = std::variant<RequestMessage, ReplyMessage>;

// A kind this version does not know, but whose header it understood.
struct UnknownRequest {
  Header header;
};

Buffer encode(const Header& header, const Request& body);
Buffer encode(const Header& header, const Reply& body);

// Bounded: wire::Reader checks every count before anything is allocated for it. Records are not
// verified here, and records of a reply carry no key. The body of a reply whose txid is not
// `awaited` is left unread, and an ErrorReply stands in for it.
using Awaited = std::function<bool(uint64_t txid)>;
Result<std::variant<RequestMessage, ReplyMessage, UnknownRequest>>
decode(ByteView plaintext, const Awaited& awaited = nullptr);

// Encoded size of a record in a reply, beside its payload; and of everything else in a FIND reply
// and one of its entries, and in a page. A header grows by its certificate. A FIND reply carries
// each contact once, however many of its entries name it; naming costs one byte.
inline constexpr size_t kRecordWireOverhead = 1 + 34 + 9 + 9 + 3 + 66;
// Of a certificate, in a header or in a record; none, none.
constexpr size_t certificate_wire_bytes(const Buffer& certificate) {
  return certificate.empty() ? 0 : 2 + certificate.size();
}
inline size_t record_wire_bytes(const Record& record) { // in a reply
  return kRecordWireOverhead + record.payload.size() + certificate_wire_bytes(record.certificate);
}
inline constexpr size_t kHeaderWireBytes = 1 + 2 + 9 + 1 + 10 + 18 + 9 + 2;
inline constexpr size_t kFindReplyWireBytes = kHeaderWireBytes + 20 + 3 + 1;
inline constexpr size_t kFindEntryWireBytes = 1 + 3 + 3 + 1;
inline constexpr size_t kPageWireBytes = kHeaderWireBytes + 3 + 1;
// The same for a STORE, whose records carry their keys.
inline constexpr size_t kStoredKeyWireBytes = 34;
inline constexpr size_t kStoreWireBytes = kHeaderWireBytes + 1;
inline constexpr size_t kNotifyWireBytes = kHeaderWireBytes + 34 + 3 + 3;
inline constexpr size_t kRefreshWireBytes = 1 + 34 + 9 + 9 + 66;

} // namespace lah::dht
