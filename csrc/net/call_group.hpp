// One or many expert calls that a caller waits for together. The network thread writes raw results
// straight into the caller's memory, lossy ones into room beside it, which close() decodes. Once
// close() has returned, nothing is written any more.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "base/shared_bytes.hpp"
#include "rpc/replica_calls.hpp"

namespace lah::net {

struct OutputTensor {
  rpc::TensorMeta expected;
  std::byte* address = nullptr;
  rpc::Codec codec = rpc::Codec::kRaw; // that the result may have instead of kRaw
  SharedBytes wire = {};               // room for it in that form
};

struct GroupedCall {
  rpc::ReplicatedCall call;
  std::vector<OutputTensor> outputs;
  uint64_t collect = 0; // take any one tensor of up to this many bytes (Method::kInfo, kState)
};

// How long to wait: until every call ended, or until every token has k_min answers or cannot get
// them, plus `timeout_after_k_min`. Row r of the calls, laid end to end, belongs to token source[r]
// / k.
struct WaitPlan {
  uint32_t k_min = 0; // 0: wait for every call
  Duration timeout_after_k_min = 0;
  const int32_t* source = nullptr;
  uint32_t k = 1;
  uint64_t tokens = 0;
  std::vector<uint64_t> row_offsets; // of the calls; one more than there are calls
};

class CallGroup : public std::enable_shared_from_this<CallGroup> {
public:
  explicit CallGroup(std::vector<GroupedCall> calls);

  // Waiting thread.
  // Like wait() for every call, without going to sleep: for calls that take less than a core needs
  // to wake up several times.
  bool look(const Clock& clock, Time until) const;
  // True: nothing is left to wait for.
  bool wait(const Clock& clock, Time until, const WaitPlan& plan);
  // Completes the outputs of the calls that succeeded. No output is written any more; calls still
  // open end with `error`. False if none was open.
  bool close(const Error& error);
  const rpc::Outcome& outcome(size_t i) const { return slots_[i]->outcome; }
  const std::string& collected(size_t i) const { return slots_[i]->collected; }
  // Of the request and of its result, as they travelled.
  uint64_t wire_bytes(size_t i) const { return slots_[i]->sent_bytes + slots_[i]->result_bytes; }
  size_t size() const { return slots_.size(); }

  // Network thread.
  GroupedCall& call(size_t i) { return slots_[i]->call; }
  rpc::ReplySink& sink(size_t i) { return *slots_[i]; }
  rpc::ReplicaCalls::CallId& id(size_t i) { return slots_[i]->id; }
  bool all_ended() const { return ended_ == slots_.size(); }

private:
  struct Slot final : rpc::ReplySink {
    CallGroup* group = nullptr;
    size_t index = 0;
    GroupedCall call;
    rpc::ReplicaCalls::CallId id = 0;
    rpc::Outcome outcome;
    std::string collected;
    uint64_t collect_bytes = 0;            // of the tensor that comes
    std::vector<rpc::TensorMeta> arriving; // the result's tensors
    uint64_t sent_bytes = 0;
    uint64_t result_bytes = 0;
    bool reported = false; // the waiter has an outcome

    bool on_result(const rpc::ResultMessage& result) override;
    void on_bytes(uint64_t stream_offset, ByteView bytes) override;
    void on_done(const rpc::Outcome& outcome) override;
    void decode_outputs() const;
  };
  void report(Slot& slot, const rpc::Outcome& outcome);
  void count_answers(const WaitPlan& plan);

  std::vector<std::unique_ptr<Slot>> slots_;
  size_t ended_ = 0; // network thread's count

  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  std::atomic<size_t> reported_ = 0; // written with mutex_ held
  std::vector<size_t> fresh_;        // reported, and not yet counted by the waiter

  // Waiting thread only.
  std::vector<uint32_t> answered_;
  std::vector<uint32_t> pending_;
  uint64_t undecided_ = 0;
  Time quorum_deadline_ = kNever;
};

} // namespace lah::net
