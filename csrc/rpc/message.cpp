#include "rpc/message.hpp"

#include "wire/reader.hpp"
#include "wire/writer.hpp"

namespace lah::rpc {
namespace {

void put_tensors(wire::Writer& out, const std::vector<TensorMeta>& tensors) {
  out.array(tensors.size());
  for (const TensorMeta& tensor : tensors) {
    out.array(4).u64(static_cast<uint64_t>(tensor.dtype)).u64(static_cast<uint64_t>(tensor.codec));
    out.array(tensor.shape.size());
    for (uint64_t extent : tensor.shape)
      out.u64(extent);
    out.u64(tensor.wire_bytes);
  }
}

// On the wire; nothing if the tensor is too large or the codec is not for its dtype.
std::optional<uint64_t> expected_bytes(const TensorMeta& tensor) {
  const auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
  if (!bytes || !codecs::codec_fits(tensor.codec, tensor.dtype))
    return std::nullopt;
  return codecs::codec_bytes(tensor.codec, tensor.dtype, *bytes / dtype_bytes(tensor.dtype));
}

TensorMeta get_tensor(wire::Reader& in) {
  TensorMeta tensor;
  in.enter(4, Limits::kWireArray);
  const uint64_t dtype = in.u64(kDTypes);
  if (dtype == 0)
    in.fail();
  tensor.dtype = static_cast<DType>(dtype);
  tensor.codec = static_cast<Codec>(in.u64(codecs::kCodecs));
  const size_t dims = in.enter(0, Limits::kTensorDims);
  for (size_t i = 0; i < dims; ++i)
    tensor.shape.push_back(in.u64(Limits::kCallBytes));
  in.leave();
  tensor.wire_bytes = in.u64(Limits::kCallBytes);
  in.leave();
  if (in.ok() && tensor.wire_bytes != expected_bytes(tensor))
    in.fail();
  return tensor;
}

std::vector<TensorMeta> get_tensors(wire::Reader& in, uint64_t total_bytes) {
  std::vector<TensorMeta> tensors;
  const size_t count = in.enter(0, Limits::kTensors);
  for (size_t i = 0; i < count && in.ok(); ++i)
    tensors.push_back(get_tensor(in));
  in.leave();
  if (in.ok() && stream_bytes(tensors) != total_bytes)
    in.fail();
  return tensors;
}

struct Encoder {
  wire::Writer& out;

  void head(Kind kind, size_t extra, const RequestId& id, uint64_t offset) const {
    out.array(4 + extra)
        .u64(kVersion)
        .u64(static_cast<uint64_t>(kind))
        .bin(as_bytes(id))
        .u64(offset);
  }
  void operator()(const Call& m) const {
    head(Kind::kCall, 10, m.id, 0);
    out.u64(m.total_bytes).u64(static_cast<uint64_t>(m.method)).str(m.uid).u64(m.deadline_ms);
    out.boolean(m.training).u64(m.priority).u64(m.attempt);
    put_tensors(out, m.tensors);
    out.u64(static_cast<uint64_t>(m.result_codec)).u64(m.boot_id);
  }
  void operator()(const Data& m) const { head(Kind::kData, 0, m.id, m.offset); }
  void operator()(const Credit& m) const {
    head(Kind::kCredit, 1, m.id, m.limit);
    out.u64(m.received);
  }
  void operator()(const Cancel& m) const { head(Kind::kCancel, 0, m.id, 0); }
  void operator()(const ResultMessage& m) const {
    head(Kind::kResult, 7, m.id, 0);
    out.u64(m.total_bytes).u64(m.queue_us).u64(m.service_us).u64(m.batch_rows);
    put_tensors(out, m.tensors);
    out.u64(m.boot_id).u64(m.wait_us);
  }
  void operator()(const ErrorMessage& m) const {
    head(Kind::kError, 3, m.id, 0);
    out.u64(static_cast<uint64_t>(m.code)).u64(m.retry_after_ms).str(m.message);
  }
  void operator()(const Ping& m) const { head(Kind::kPing, 0, m.id, 0); }
  void operator()(const Pong& m) const {
    head(Kind::kPong, 2, m.id, 0);
    out.u64(m.boot_id).u64(m.connection);
  }
  void operator()(const GoAway& m) const { head(Kind::kGoAway, 0, m.id, 0); }
  void operator()(const Join& m) const {
    head(Kind::kJoin, 1, m.id, 0);
    out.u64(m.connection);
  }
};

Message get_call(wire::Reader& in, const RequestId& id) {
  Call call;
  call.id = id;
  call.total_bytes = in.u64(Limits::kCallBytes);
  const uint64_t method = in.u64(kMethods);
  if (method == 0)
    in.fail();
  call.method = static_cast<Method>(method);
  call.uid = in.str(Limits::kUidBytes);
  call.deadline_ms = in.u64(Limits::kDeadlineMs);
  call.training = in.boolean();
  call.priority = static_cast<uint8_t>(in.u64(255));
  call.attempt = static_cast<uint8_t>(in.u64(255));
  call.tensors = get_tensors(in, call.total_bytes);
  call.result_codec = static_cast<Codec>(in.u64(codecs::kCodecs));
  call.boot_id = in.u64();
  return call;
}

Message get_result(wire::Reader& in, const RequestId& id) {
  ResultMessage result;
  result.id = id;
  result.total_bytes = in.u64(Limits::kCallBytes);
  result.queue_us = in.u64();
  result.service_us = in.u64();
  result.batch_rows = in.u64();
  result.tensors = get_tensors(in, result.total_bytes);
  result.boot_id = in.u64();
  result.wait_us = in.u64();
  return result;
}

Message get_error(wire::Reader& in, const RequestId& id) {
  ErrorMessage error;
  error.id = id;
  error.code = static_cast<ErrorCode>(in.u64(kErrorCodes));
  error.retry_after_ms = in.u64(Limits::kDeadlineMs);
  error.message = in.str(Limits::kHeaderBytes);
  return error;
}

Message get_pong(wire::Reader& in, const RequestId& id) {
  Pong pong{id};
  pong.boot_id = in.u64();
  pong.connection = in.u64();
  return pong;
}

Message get_body(wire::Reader& in, uint64_t kind, const RequestId& id, uint64_t offset) {
  switch (static_cast<Kind>(kind)) {
  case Kind::kCall:
    return get_call(in, id);
  case Kind::kData:
    return Data{id, offset};
  case Kind::kCredit:
    return Credit{id, offset, in.u64(Limits::kCallBytes)};
  case Kind::kCancel:
    return Cancel{id};
  case Kind::kResult:
    return get_result(in, id);
  case Kind::kError:
    return get_error(in, id);
  case Kind::kPing:
    return Ping{id};
  case Kind::kPong:
    return get_pong(in, id);
  case Kind::kGoAway:
    return GoAway{id};
  case Kind::kJoin:
    return Join{id, in.u64()};
  }
  in.fail();
  return GoAway{};
}

} // namespace

std::string TensorMeta::text() const {
  std::string out = std::string(dtype_name(dtype)) + "[";
  for (size_t i = 0; i < shape.size(); ++i)
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

std::optional<uint64_t> tensor_bytes(DType dtype, const std::vector<uint64_t>& shape) {
  uint64_t bytes = dtype_bytes(dtype);
  for (uint64_t extent : shape) {
    if (extent > Limits::kCallBytes)
      return std::nullopt;
    bytes *= extent;
    if (bytes > Limits::kCallBytes) // both factors are below 2^29, so the product cannot wrap
      return std::nullopt;
  }
  return bytes;
}

uint64_t stream_bytes(const std::vector<TensorMeta>& tensors) {
  uint64_t total = 0;
  for (const TensorMeta& tensor : tensors)
    total += align_up(tensor.wire_bytes);
  return total;
}

Buffer encode(const Message& message) {
  wire::Writer out;
  std::visit(Encoder{out}, message);
  return out.take();
}

Result<Message> decode(ByteView header) {
  if (header.size() > Limits::kHeaderBytes)
    return Error{ErrorCode::kProtocol, "oversized header"};
  auto reader = wire::Reader::parse(header);
  if (!reader)
    return reader.error();
  wire::Reader& in = *reader;
  in.enter(4, Limits::kWireArray);
  const uint64_t version = in.u64();
  const uint64_t kind = in.u64(static_cast<uint64_t>(Kind::kJoin));
  const RequestId id = in.fixed<16>();
  const uint64_t offset = in.u64(Limits::kCallBytes);
  if (!in.ok() || version != kVersion)
    return Error{ErrorCode::kProtocol, "header of an unknown version or shape"};
  Message message = get_body(in, kind, id, offset);
  if (!in.ok())
    return Error{ErrorCode::kProtocol, "header with a field out of range"};
  return message;
}

} // namespace lah::rpc
