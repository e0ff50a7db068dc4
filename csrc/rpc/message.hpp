// Every message of an expert call, declared once. On the wire a message is two frames,
// [header][chunk]; the header is the msgpack array [version, kind, request id, stream offset, ...]
// of at most Limits::kHeaderBytes, and each kind appends its own fields. Readers skip fields that a
// newer peer appended.
#pragma once

#include <optional>
#include <variant>

#include "base/bytes.hpp"
#include "base/limits.hpp"
#include "base/result.hpp"
#include "codecs/codec.hpp"

namespace lah::rpc {

inline constexpr uint64_t kVersion = 1;

using RequestId = std::array<uint8_t, 16>;

struct RequestIdHash {
  size_t operator()(const RequestId& id) const noexcept {
    size_t value = 0;
    std::memcpy(&value, id.data(), sizeof(value)); // ids are random
    return value;
  }
};

enum class Kind : uint8_t {
  kCall = 1,
  kData = 2,
  kCredit = 3,
  kCancel = 4,
  kResult = 5,
  kError = 6,
  kPing = 7,
  kPong = 8,
  kGoAway = 9,
  kJoin = 10,
};

enum class Method : uint8_t {
  kForward = 1,
  kBackward = 2,
  kInfo = 3,  // the expert's schema, as JSON
  kState = 4, // the expert itself: a safetensors file, where its server permits
};
inline constexpr uint64_t kMethods = 4;

using codecs::Codec;

struct TensorMeta {
  DType dtype = DType::kFloat32;
  Codec codec = Codec::kRaw;
  std::vector<uint64_t> shape;
  uint64_t wire_bytes = 0;

  bool operator==(const TensorMeta&) const = default;
  std::string text() const; // "float32[3, 64]"
};

// Bytes of the elements, or nothing if the product overflows Limits::kCallBytes.
std::optional<uint64_t> tensor_bytes(DType dtype, const std::vector<uint64_t>& shape);

// A stream holds the tensors one behind the other, each starting on a kTensorAlign boundary.
uint64_t stream_bytes(const std::vector<TensorMeta>& tensors);

struct Call {
  RequestId id{};
  uint64_t total_bytes = 0;
  Method method = Method::kForward;
  std::string uid;
  uint64_t deadline_ms = 0; // remaining when sent
  bool training = true;
  uint8_t priority = 0; // higher goes first
  uint8_t attempt = 0;  // counts how often this request was sent
  std::vector<TensorMeta> tensors;
  Codec result_codec = Codec::kRaw; // of the result's tensors that it fits
  uint64_t boot_id = 0; // the incarnation that an earlier attempt reached; 0: none is known
};

struct Data {
  RequestId id{};
  uint64_t offset = 0;
};

// The receiver of stream `id` accepts its bytes [0, limit), and has so many already. From now on it
// also takes DATA of this stream over stripes, in any order.
struct Credit {
  RequestId id{};
  uint64_t limit = 0;
  uint64_t received = 0;
};

struct Cancel {
  RequestId id{};
};

struct ResultMessage {
  RequestId id{};
  uint64_t total_bytes = 0;
  uint64_t queue_us = 0;   // complete request to start of its batch
  uint64_t service_us = 0; // start to end of its batch
  uint64_t batch_rows = 0;
  std::vector<TensorMeta> tensors;
  uint64_t boot_id = 0;
  uint64_t wait_us = 0; // what a request that comes now would wait
};

// The chunk holds the remote traceback's text, if there is one.
struct ErrorMessage {
  RequestId id{};
  ErrorCode code = ErrorCode::kNone;
  uint64_t retry_after_ms = 0;
  std::string message;
};

struct Ping {
  RequestId id{};
};

// `connection` is another one after each reconnection: what was sent over the last may be lost.
struct Pong {
  RequestId id{};
  uint64_t boot_id = 0;
  uint64_t connection = 0;
};

// This connection is a stripe of another one of the same caller, which a PONG over that one named:
// DATA of its streams may take either. Answered by a PONG that names the stripe; not at all if the
// two callers' keys differ or there is no encryption.
struct Join {
  RequestId id{};
  uint64_t connection = 0;
};

// The server takes no new calls on this connection.
struct GoAway {
  RequestId id{};
};

using Message =
    std::variant<Call, Data, Credit, Cancel, ResultMessage, ErrorMessage, Ping, Pong, GoAway, Join>;

Buffer encode(const Message& message);
Result<Message> decode(ByteView header);

} // namespace lah::rpc
