// What a server remembers of backward calls: one that its caller repeats, because a connection was
// lost, is answered again and never applied again.
#pragma once

#include <deque>
#include <string>
#include <unordered_map>

#include "base/shared_bytes.hpp"
#include "base/time.hpp"
#include "rpc/link.hpp"
#include "rpc/message.hpp"

namespace lah::rpc {

struct OutgoingResult {
  ResultMessage header; // id, total_bytes and boot_id are filled in by the server
  SharedBytes bytes;    // the stream
  // Instead of `bytes`, for a result of more than one chunk: its tensors, unchanged until `keep` is
  // dropped.
  std::vector<ByteView> tensors = {};
  std::shared_ptr<const void> keep = nullptr;
};

class BackwardMemory {
public:
  struct Entry {
    RequestId id{};
    std::string caller; // whose call it is (Link::caller)
    PeerId origin = 0;  // the connection it came by
    PeerId peer = 0;    // the connection its answer goes to
    bool applied = false;
    bool kept = false; // `result` is still there
    OutgoingResult result;
  };

  // A complete request, about to be applied.
  void open(const RequestId& id, std::string_view caller, PeerId peer);
  Entry* find(const RequestId& id); // null if unknown
  void applied(Time now, const RequestId& id, const OutgoingResult& result);
  void failed(const RequestId& id); // not applied: a repetition may be
  void expire(Time now);
  Time next_deadline() const;
  size_t size() const { return entries_.size(); }
  size_t bytes() const { return bytes_; }

private:
  struct Applied {
    RequestId id;
    Time at;
  };
  void drop_results();

  std::unordered_map<RequestId, Entry, RequestIdHash> entries_;
  std::deque<Applied> applied_; // oldest first
  size_t with_results_ = 0;     // this many at the end of applied_ have their result
  size_t bytes_ = 0;
};

} // namespace lah::rpc
