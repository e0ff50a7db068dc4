// Reads one msgpack document whose every count was checked against Limits before anything was
// allocated for it.
#pragma once

#include "base/bytes.hpp"
#include "base/limits.hpp"
#include "base/result.hpp"

namespace lah::wire {

enum class NodeKind : uint8_t { kArray, kUnsigned, kNegative, kFloat, kBool, kNil, kBin, kStr };

// One element of a document. `next` is the index of the first node behind it and its children.
struct Node {
  NodeKind kind;
  uint32_t next;
  uint64_t number; // value, or the element count of an array
  double real;
  ByteView bytes; // into the document
};

// Cursor over a parsed document. Errors stick: after the first one every read returns a neutral
// value and ok() is false, so a decoder reads all its fields and checks once. Elements a newer peer
// appended are skipped by leave(). The document's bytes must outlive the Reader and every view it
// returned.
class Reader {
public:
  static Result<Reader> parse(ByteView document);

  // Enters an array of min..max elements and returns how many there are.
  size_t enter(size_t min, size_t max);
  void leave();

  uint64_t u64(uint64_t max = UINT64_MAX);
  int64_t i64();
  double f64();
  bool boolean();
  bool nil(); // true and consumed if the next element is nil; otherwise false and not consumed
  ByteView bin(size_t min, size_t max);
  std::string_view str(size_t max);
  void skip();

  template <size_t N> std::array<uint8_t, N> fixed() {
    std::array<uint8_t, N> value{};
    const ByteView data = bin(N, N);
    if (data.size() == N)
      std::memcpy(value.data(), data.data(), N);
    return value;
  }

  bool ok() const { return ok_; }
  void fail() { ok_ = false; }

private:
  const Node* take(NodeKind kind);

  struct Level {
    uint32_t end;
    uint32_t resume;
  };

  std::vector<Node> nodes_;
  std::array<Level, Limits::kWireDepth + 1> levels_{};
  size_t depth_ = 0;
  uint32_t position_ = 0;
  bool ok_ = true;
};

} // namespace lah::wire
