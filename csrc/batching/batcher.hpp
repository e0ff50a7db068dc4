// Where the network thread and the runtime threads meet: complete requests go in, contiguous
// batches come out, results go back. The network thread never waits here for Python; a runtime
// thread waits with the GIL released. Each device has a lane: pools, a queue over all of them, and
// one runtime thread that takes its batches.
#pragma once

#include <array>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <set>
#include <unordered_map>

#include "batching/task_pool.hpp"
#include "batching/turns.hpp"

namespace lah::batching {

// Takes answers from the runtime thread to the network thread.
class ReplyPort {
public:
  virtual ~ReplyPort() = default;
  virtual void reply(const rpc::CallKey& key, rpc::OutgoingResult result) = 0;
  virtual void fail(const rpc::CallKey& key, const Error& error) = 0;
};

// One batch, copied into the slab: input i of all rows lies at slab + offsets[i], the rows of the
// first request first. Large requests that are alone in their batch are not copied: then the
// offsets are from `lent`, which is there as long as `owner`.
struct Batch {
  uint64_t id = 0;
  uint32_t pool = 0;
  uint64_t rows = 0;
  bool training = true;
  std::vector<uint64_t> offsets;
  std::vector<uint64_t> request_rows;
  MutableByteView lent = {};
  std::shared_ptr<const void> owner = nullptr;
};

enum class Taken { kBatch, kTimeout, kStopped, kSlabTooSmall };

class Batcher final : public rpc::CallHandler {
public:
  Batcher(const Clock& clock, ByteAllocator& allocator);

  // Before serving.
  uint32_t add_pool(PoolSpec spec);
  void set_description(const std::string& uid, std::string json);
  void connect(ReplyPort* port); // null disconnects: later answers are dropped

  // Network thread.
  Result<uint32_t> admit(const rpc::Call& call) override;
  void submit(rpc::IncomingCall call) override;
  void cancel(const rpc::CallKey& key) override;
  Result<std::string> describe(const std::string& uid) override;

  // Any thread. What a request of priority 0 that comes now would wait, on the busiest device.
  uint64_t wait_us() const;

  // Runtime thread of this lane, the only one to touch its pending batch. kSlabTooSmall leaves the
  // batch pending and its need in `slab_bytes_needed`.
  Taken take(uint32_t lane, MutableByteView slab, Time deadline, Batch& batch,
             size_t& slab_bytes_needed);
  // Both answer some requests of a batch, named by their index in it (none named: all that are
  // left); a batch ends with its last answer. `outputs` hold the rows of these requests only; with
  // `keep` they stay as they are until it is dropped, and a large result of one request is not
  // copied.
  using Requests = std::vector<uint32_t>;
  void finish(uint64_t batch_id, const Requests& requests, const std::vector<ByteView>& outputs,
              std::shared_ptr<const void> keep = nullptr);
  void fail(uint64_t batch_id, const Requests& requests, const Error& error);

  // Any thread. Answers everything that waits with kShuttingDown and lets take() return kStopped.
  void stop();
  // Lets take() return kTimeout at once, if there is no batch: the runtime thread has other work.
  void wake();

  struct Counters {
    uint64_t requests = 0;
    uint64_t batches = 0;
    uint64_t rows = 0;
    uint64_t expired = 0;
    uint64_t failed = 0;
    uint64_t lent = 0; // requests and results that were not copied
  };
  Counters counters() const;

private:
  struct Running {
    uint32_t pool = 0;
    Time started = 0;
    Duration expected = 0; // from then on
    uint64_t rows = 0;
    uint64_t wait_us = 0; // of a request that comes when this one is answered
    std::vector<rpc::IncomingCall> calls;
    std::vector<bool> answered; // of each call
    size_t left = 0;            // calls to answer
  };

  static constexpr Time kCancelled = std::numeric_limits<Time>::min(); // as a deadline

  struct Lane {
    std::set<uint32_t> waiting; // pools with requests
    Turns turns;
    uint64_t pending = 0; // id of a batch that was chosen and not yet copied out; 0: none
    bool woken = false;
    std::condition_variable arrived;
  };

  std::optional<uint32_t> next_pool(const Lane& lane, Time now, Time& wake_at) const;
  bool prepare(Lane& lane, Time now, Time& wake_at, std::vector<rpc::CallKey>& expired);
  void cancel_running(const rpc::CallKey& key);
  void left_queue(uint32_t pool, rpc::PeerId peer);
  Duration wait(uint32_t lane, uint8_t priority, Time now) const;
  std::optional<Error> refuse(const TaskPool& pool, const rpc::Call& call) const;
  std::vector<uint64_t> layout(const Running& running, size_t& bytes) const;
  bool lend(Running& running, Batch& batch, size_t bytes);
  void fill(const Running& running, const std::vector<uint64_t>& offsets,
            MutableByteView slab) const;
  Running take_running(uint64_t batch_id, const Requests& requests);
  std::optional<rpc::OutgoingResult> result_of(const Running& running,
                                               const rpc::IncomingCall& call, Time now,
                                               const std::vector<ByteView>& outputs,
                                               uint64_t first_row,
                                               const std::shared_ptr<const void>& keep);
  bool may_lend_state();
  void drop_late(const rpc::IncomingCall& call);
  void send_fail(const rpc::CallKey& key, const Error& error);

  const Clock& clock_;
  ByteAllocator& allocator_;

  mutable std::mutex mutex_;
  std::deque<TaskPool> pools_;
  std::deque<Lane> lanes_;
  std::array<std::unordered_map<std::string, uint32_t>, rpc::kMethods + 1> pools_by_uid_;
  std::unordered_map<std::string, std::string> descriptions_;
  std::map<uint64_t, Running> running_;
  uint64_t next_id_ = 1;
  bool stopped_ = false;
  std::vector<std::weak_ptr<const void>> lent_states_; // of experts, on their way to callers
  Counters counters_;

  std::mutex port_mutex_;
  ReplyPort* port_ = nullptr;
};

} // namespace lah::batching
