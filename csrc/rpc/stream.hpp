// The bytes of a call or a result as a stream: tensors one behind the other, each on a kTensorAlign
// boundary. A stream of at most one chunk travels whole, padding included; a longer one in pieces
// that never cross a tensor's end, in order, so a sender can lend the tensors' own memory and a
// receiver can refuse everything else.
#pragma once

#include <algorithm>

#include "rpc/message.hpp"

namespace lah::rpc {

struct Piece {
  size_t tensor = 0;
  uint64_t begin = 0;  // in the tensor
  uint64_t offset = 0; // in the stream
  uint64_t size = 0;
};

class StreamCursor {
public:
  StreamCursor() = default;
  explicit StreamCursor(const std::vector<TensorMeta>& tensors) {
    for (const TensorMeta& tensor : tensors)
      sizes_.push_back(tensor.wire_bytes);
    total_ = stream_bytes(tensors);
    done_ = total_ == 0;
    skip_empty();
  }

  uint64_t total() const { return total_; }
  bool whole() const { return total_ <= Limits::kChunkBytes; } // travels as one chunk
  bool done() const { return done_; }
  uint64_t offset() const { return whole() ? 0 : base_ + within_; }

  // The piece that must come next, at most one chunk.
  Piece next() const {
    if (whole())
      return {0, 0, 0, total_};
    return {tensor_, within_, offset(),
            std::min<uint64_t>(sizes_[tensor_] - within_, Limits::kChunkBytes)};
  }

  void advance(uint64_t size) {
    if (whole()) {
      done_ = true;
      return;
    }
    within_ += size;
    skip_empty();
  }

private:
  void skip_empty() {
    while (!done_ && within_ == sizes_[tensor_]) {
      base_ += align_up(sizes_[tensor_]);
      within_ = 0;
      done_ = ++tensor_ == sizes_.size();
    }
  }

  std::vector<uint64_t> sizes_;
  uint64_t total_ = 0;
  size_t tensor_ = 0;
  uint64_t within_ = 0;
  uint64_t base_ = 0; // stream offset of tensor_
  bool done_ = true;
};

// How far a sender may go, and when a receiver should say so again.
class CreditWindow {
public:
  // A new limit to announce, or 0 while at least half a window is still open.
  uint64_t grant(uint64_t received) {
    if (received + Limits::kCreditBytes / 2 <= limit_)
      return 0;
    limit_ = received + Limits::kCreditBytes;
    return limit_;
  }

private:
  uint64_t limit_ = Limits::kCreditBytes;
};

} // namespace lah::rpc
