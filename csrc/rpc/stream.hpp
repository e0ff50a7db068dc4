// The bytes of a call or a result as a stream: tensors one behind the other, each on a kTensorAlign
// boundary. A stream of at most one chunk travels whole, padding included; a longer one in pieces
// that never cross a tensor's end, so a sender can lend the tensors' own memory and a receiver can
// refuse everything else.
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

// Which pieces of a stream have come. Those of one connection come in order, those of several in
// any.
class PieceSet {
public:
  enum class Taken { kNew, kRepeated, kWrong };

  PieceSet() = default;
  explicit PieceSet(const std::vector<TensorMeta>& tensors) {
    for (StreamCursor cursor(tensors); !cursor.done(); cursor.advance(cursor.next().size))
      pieces_.emplace_back(cursor.next().offset, cursor.next().size);
    come_.resize(pieces_.size());
    missing_ = pieces_.size();
  }

  bool done() const { return missing_ == 0; }
  uint64_t first() const { return pieces_.empty() ? 0 : pieces_.front().second; } // its size
  uint64_t received() const { return received_; }                                 // bytes

  Taken take(uint64_t offset, uint64_t size) {
    const auto found = std::lower_bound(pieces_.begin(), pieces_.end(), std::pair(offset, size));
    if (found == pieces_.end() || *found != std::pair(offset, size))
      return Taken::kWrong;
    const auto index = static_cast<size_t>(found - pieces_.begin());
    if (come_[index])
      return Taken::kRepeated;
    come_[index] = true;
    --missing_;
    received_ += size;
    return Taken::kNew;
  }

private:
  std::vector<std::pair<uint64_t, uint64_t>> pieces_; // (offset, size), ascending
  std::vector<bool> come_;
  size_t missing_ = 0;
  uint64_t received_ = 0;
};

// How far a sender may go, and when a receiver should say so again. The window of a stream doubles
// whenever an eighth of it was used, up to twice what a link of 1 Gbit/s and 100 ms holds: a stream
// that gets that far is long, and its buffer is there in whole.
class CreditWindow {
public:
  CreditWindow() = default;
  explicit CreditWindow(uint64_t total) : total_(total) {}

  // A new limit to announce, or 0 while most of a window is still open, or the whole stream.
  // Otherwise the first call answers at once: its announcement opens the stream to stripes.
  uint64_t grant(uint64_t received) {
    if (limit_ >= total_ || (announced_ && received + window_ - window_ / 8 <= limit_))
      return 0;
    announced_ = true;
    window_ = std::min<uint64_t>(2 * window_, Limits::kCreditMostBytes);
    limit_ = std::min(received + window_, total_);
    return limit_;
  }

private:
  uint64_t total_ = 0;
  bool announced_ = false;
  uint64_t window_ = Limits::kCreditBytes;
  uint64_t limit_ = Limits::kCreditBytes;
};

} // namespace lah::rpc
