#include "net/call_group.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "rpc/coded_tensors.hpp"

namespace lah::net {

CallGroup::CallGroup(std::vector<GroupedCall> calls) {
  for (GroupedCall& call : calls) {
    auto slot = std::make_unique<Slot>();
    slot->group = this;
    slot->index = slots_.size();
    slot->sent_bytes = rpc::stream_bytes(call.call.call.header.tensors);
    slot->call = std::move(call);
    slots_.push_back(std::move(slot));
  }
}

bool CallGroup::Slot::on_result(const rpc::ResultMessage& result) {
  const std::lock_guard lock(group->mutex_);
  if (group->closed_)
    return true; // the waiter reads what there is
  if (call.collect > 0) {
    if (result.tensors.size() != 1 || result.tensors.front().wire_bytes > call.collect)
      return false;
    collected.clear(); // of an attempt that broke off
    collect_bytes = result.tensors.front().wire_bytes;
    return true;
  }
  const auto fits = [](const rpc::TensorMeta& got, const OutputTensor& want) {
    return got == want.expected || got == rpc::with_codec(want.expected, want.codec);
  };
  if (!std::equal(result.tensors.begin(), result.tensors.end(), call.outputs.begin(),
                  call.outputs.end(), fits))
    return false;
  arriving = result.tensors;
  result_bytes = result.total_bytes;
  return true;
}

void CallGroup::Slot::on_bytes(uint64_t stream_offset, ByteView bytes) {
  const std::lock_guard lock(
      group->mutex_); // held while copying: close() must not return meanwhile
  if (group->closed_)
    return;
  if (call.collect > 0) { // grows with what has come, not with what was promised
    const uint64_t end = std::min(stream_offset + bytes.size(), collect_bytes);
    if (collected.size() < end)
      collected.resize(end);
    if (stream_offset < end)
      std::memcpy(collected.data() + stream_offset, bytes.data(), end - stream_offset);
    return;
  }
  uint64_t start = 0;
  for (size_t i = 0; i < arriving.size(); ++i) {
    const OutputTensor& output = call.outputs[i];
    std::byte* const into =
        arriving[i].codec == rpc::Codec::kRaw ? output.address : output.wire.get();
    const uint64_t end = start + arriving[i].wire_bytes;
    const uint64_t from = std::max(start, stream_offset);
    const uint64_t to = std::min(end, stream_offset + bytes.size());
    if (from < to)
      std::memcpy(into + (from - start), bytes.data() + (from - stream_offset), to - from);
    start += align_up(arriving[i].wire_bytes);
  }
}

void CallGroup::Slot::decode_outputs() const {
  for (size_t i = 0; i < arriving.size(); ++i) {
    const OutputTensor& output = call.outputs[i];
    if (arriving[i].codec != rpc::Codec::kRaw)
      codecs::decode(arriving[i].codec, {output.wire.get(), arriving[i].wire_bytes},
                     {output.address, output.expected.wire_bytes});
  }
}

void CallGroup::Slot::on_done(const rpc::Outcome& result) {
  ++group->ended_;
  const std::lock_guard lock(group->mutex_);
  group->report(*this, result);
}

void CallGroup::report(Slot& slot, const rpc::Outcome& outcome) {
  if (slot.reported)
    return;
  slot.reported = true;
  slot.outcome = outcome;
  ++reported_;
  fresh_.push_back(slot.index);
  changed_.notify_one();
}

// A token is decided once it has k_min answers, or none of its calls is open any more.
void CallGroup::count_answers(const WaitPlan& plan) {
  if (pending_.empty()) {
    pending_.assign(plan.tokens, 0);
    answered_.assign(plan.tokens, 0);
    for (uint64_t row = 0; row < plan.row_offsets.back(); ++row)
      ++pending_[static_cast<size_t>(plan.source[row]) / plan.k];
    undecided_ = static_cast<uint64_t>(
        std::count_if(pending_.begin(), pending_.end(), [](uint32_t calls) { return calls > 0; }));
  }
  const auto decided = [&](size_t token) {
    return answered_[token] >= plan.k_min || pending_[token] == 0;
  };
  for (size_t call : fresh_) {
    const bool ok = slots_[call]->outcome.error.code == ErrorCode::kNone;
    for (uint64_t row = plan.row_offsets[call]; row < plan.row_offsets[call + 1]; ++row) {
      const size_t token = static_cast<size_t>(plan.source[row]) / plan.k;
      const bool before = decided(token);
      --pending_[token];
      answered_[token] += ok ? 1 : 0;
      undecided_ -= !before && decided(token) ? 1 : 0;
    }
  }
  fresh_.clear();
}

bool CallGroup::look(const Clock& clock, Time until) const {
  while (reported_ < slots_.size() && clock.now() < until)
    std::this_thread::yield();
  return reported_ == slots_.size();
}

bool CallGroup::wait(const Clock& clock, Time until, const WaitPlan& plan) {
  std::unique_lock lock(mutex_);
  while (reported_ < slots_.size()) {
    const Time now = clock.now();
    if (plan.k_min > 0) {
      count_answers(plan);
      if (undecided_ == 0)
        quorum_deadline_ = std::min(quorum_deadline_, now + plan.timeout_after_k_min);
    }
    if (now >= quorum_deadline_)
      return true;
    const Time wake_at = std::min(until, quorum_deadline_);
    if (now >= until)
      return false;
    changed_.wait_for(lock, std::chrono::nanoseconds(wake_at - now));
  }
  return true;
}

bool CallGroup::close(const Error& error) {
  bool open = false;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    open = reported_ < slots_.size();
    for (const auto& slot : slots_)
      report(*slot, {error});
  }
  for (const auto& slot : slots_) // those that succeeded have ended: the network is done with them
    if (slot->outcome.error.code == ErrorCode::kNone && !slot->call.collect)
      slot->decode_outputs();
  return open;
}

} // namespace lah::net
