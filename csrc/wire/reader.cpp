#include "wire/reader.hpp"

#include <msgpack.hpp>

#include <algorithm>

namespace lah::wire {
namespace {

// Refuses at the header of an element, so a five-byte bomb announcing four billion elements costs
// nothing.
class BoundedVisitor : public msgpack::null_visitor {
public:
  explicit BoundedVisitor(std::vector<Node>& nodes) : nodes_(nodes) {}

  bool visit_nil() { return leaf(NodeKind::kNil, 0, {}); }
  bool visit_boolean(bool value) { return leaf(NodeKind::kBool, value, {}); }
  bool visit_positive_integer(uint64_t value) { return leaf(NodeKind::kUnsigned, value, {}); }
  bool visit_negative_integer(int64_t value) {
    return leaf(NodeKind::kNegative, static_cast<uint64_t>(value), {});
  }
  bool visit_float32(float value) { return visit_float64(static_cast<double>(value)); }
  bool visit_float64(double value) {
    if (!leaf(NodeKind::kFloat, 0, {}))
      return false;
    nodes_.back().real = value;
    return true;
  }
  bool visit_str(const char* data, uint32_t size) { return blob(NodeKind::kStr, data, size); }
  bool visit_bin(const char* data, uint32_t size) { return blob(NodeKind::kBin, data, size); }
  bool visit_ext(const char*, uint32_t) { return false; }
  bool start_map(uint32_t) { return false; }

  bool start_array(uint32_t size) {
    if (size > Limits::kWireArray || depth_ >= Limits::kWireDepth ||
        nodes_.size() + size + 1 > Limits::kWireNodes)
      return false;
    open_[depth_++] = static_cast<uint32_t>(nodes_.size());
    return leaf(NodeKind::kArray, size, {});
  }
  bool end_array() {
    nodes_[open_[--depth_]].next = static_cast<uint32_t>(nodes_.size());
    return true;
  }

  void parse_error(size_t, size_t) { failed_ = true; }
  void insufficient_bytes(size_t, size_t) { failed_ = true; }
  bool failed() const { return failed_; }

private:
  bool blob(NodeKind kind, const char* data, uint32_t size) {
    return size <= Limits::kWireBytes && leaf(kind, size, std::as_bytes(std::span(data, size)));
  }
  bool leaf(NodeKind kind, uint64_t number, ByteView bytes) {
    if (nodes_.size() >= Limits::kWireNodes)
      return false;
    nodes_.push_back({kind, static_cast<uint32_t>(nodes_.size() + 1), number, 0.0, bytes});
    return true;
  }

  std::vector<Node>& nodes_;
  std::array<uint32_t, Limits::kWireDepth> open_{};
  size_t depth_ = 0;
  bool failed_ = false;
};

} // namespace

Result<Reader> Reader::parse(ByteView document) {
  Reader reader;
  // An element takes a byte at least. Growing step by step would hold two copies for a while.
  reader.nodes_.reserve(std::min(document.size(), Limits::kWireNodes));
  BoundedVisitor visitor(reader.nodes_);
  size_t offset = 0;
  const auto* data = reinterpret_cast<const char*>(document.data());
  const bool complete = msgpack::parse(data, document.size(), offset, visitor);
  if (!complete || visitor.failed() || reader.nodes_.empty() || offset != document.size())
    return Error{ErrorCode::kProtocol, "malformed or oversized msgpack document"};
  reader.levels_[0] = {static_cast<uint32_t>(reader.nodes_.size()), 0};
  return reader;
}

const Node* Reader::take(NodeKind kind) {
  if (!ok_ || position_ >= levels_[depth_].end || nodes_[position_].kind != kind) {
    ok_ = false;
    return nullptr;
  }
  const Node* node = &nodes_[position_];
  position_ = node->next;
  return node;
}

size_t Reader::enter(size_t min, size_t max) {
  const uint32_t at = position_;
  const Node* node = take(NodeKind::kArray);
  if (node == nullptr || node->number < min || node->number > max) {
    ok_ = false;
    return 0;
  }
  levels_[++depth_] = {node->next, node->next};
  position_ = at + 1;
  return static_cast<size_t>(node->number);
}

void Reader::leave() {
  if (!ok_ || depth_ == 0) {
    ok_ = false;
    return;
  }
  position_ = levels_[depth_--].resume;
}

uint64_t Reader::u64(uint64_t max) {
  const Node* node = take(NodeKind::kUnsigned);
  if (node == nullptr || node->number > max) {
    ok_ = false;
    return 0;
  }
  return node->number;
}

int64_t Reader::i64() {
  if (ok_ && position_ < levels_[depth_].end && nodes_[position_].kind == NodeKind::kNegative)
    return static_cast<int64_t>(take(NodeKind::kNegative)->number);
  return static_cast<int64_t>(u64(INT64_MAX));
}

double Reader::f64() {
  const Node* node = take(NodeKind::kFloat);
  return node == nullptr ? 0.0 : node->real;
}

bool Reader::boolean() {
  const Node* node = take(NodeKind::kBool);
  return node != nullptr && node->number != 0;
}

bool Reader::nil() {
  if (!ok_ || position_ >= levels_[depth_].end || nodes_[position_].kind != NodeKind::kNil)
    return false;
  ++position_;
  return true;
}

ByteView Reader::bin(size_t min, size_t max) {
  const Node* node = take(NodeKind::kBin);
  if (node == nullptr || node->bytes.size() < min || node->bytes.size() > max) {
    ok_ = false;
    return {};
  }
  return node->bytes;
}

std::string_view Reader::str(size_t max) {
  const Node* node = take(NodeKind::kStr);
  if (node == nullptr || node->bytes.size() > max) {
    ok_ = false;
    return {};
  }
  return as_text(node->bytes);
}

void Reader::skip() {
  if (!ok_ || position_ >= levels_[depth_].end) {
    ok_ = false;
    return;
  }
  position_ = nodes_[position_].next;
}

} // namespace lah::wire
