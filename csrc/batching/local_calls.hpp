// Requests of this process itself: the same pools and batches, no socket.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>

#include "batching/batcher.hpp"

namespace lah::batching {

struct LocalResult {
  Error error;
  rpc::OutgoingResult result;
};

// A ReplyPort that keeps the answers to local requests and passes all others on.
class LocalCalls final : public ReplyPort {
public:
  LocalCalls(Batcher& batcher, ByteAllocator& allocator, const Clock& clock);

  void connect(ReplyPort* remote); // null: answers to remote peers are dropped

  // Copies the tensors. A ticket to wait with, or why the pool does not take them.
  Result<uint64_t> submit(rpc::Call call, const std::vector<ByteView>& tensors, Duration timeout);
  // Nothing if the answer is not there by `until`. A ticket's answer is given once.
  std::optional<LocalResult> wait(uint64_t ticket, Time until);

  void reply(const rpc::CallKey& key, rpc::OutgoingResult result) override;
  void fail(const rpc::CallKey& key, const Error& error) override;

private:
  static constexpr rpc::PeerId kHere = 0; // transports count from 1
  void keep(const rpc::CallKey& key, LocalResult result);
  bool gather(rpc::OutgoingResult& result);

  Batcher& batcher_;
  ByteAllocator& allocator_;
  const Clock& clock_;

  std::mutex mutex_;
  std::condition_variable answered_;
  std::map<uint64_t, LocalResult> results_;
  uint64_t next_ticket_ = 1;

  std::mutex remote_mutex_;
  ReplyPort* remote_ = nullptr;
};

} // namespace lah::batching
