#include "batching/batcher.hpp"

namespace lah::batching {
namespace {

constexpr double kUsableDeadline = 0.8; // of a call's deadline: a longer wait leaves no time to run
constexpr Duration kMinRetry = 10 * kMillisecond;
constexpr Duration kMaxRetry = 60 * kSecond;

uint32_t retry_after_ms(Duration wait) {
  return static_cast<uint32_t>(std::clamp(wait, kMinRetry, kMaxRetry) / kMillisecond);
}

} // namespace

Batcher::Batcher(const Clock& clock, ByteAllocator& allocator)
    : clock_(clock), allocator_(allocator) {}

uint32_t Batcher::add_pool(PoolSpec spec) {
  const std::lock_guard lock(mutex_);
  const auto index = static_cast<uint32_t>(pools_.size());
  pools_by_uid_[static_cast<size_t>(spec.method)][spec.uid] = index;
  while (lanes_.size() <= spec.lane)
    lanes_.emplace_back();
  pools_.emplace_back(std::move(spec));
  return index;
}

void Batcher::set_description(const std::string& uid, std::string json) {
  const std::lock_guard lock(mutex_);
  descriptions_[uid] = std::move(json);
}

void Batcher::connect(ReplyPort* port) {
  const std::lock_guard lock(port_mutex_);
  port_ = port;
}

Result<uint32_t> Batcher::admit(const rpc::Call& call) {
  const std::lock_guard lock(mutex_);
  if (stopped_)
    return Error{ErrorCode::kShuttingDown, "the server is shutting down"};
  const auto& by_uid = pools_by_uid_[static_cast<size_t>(call.method)];
  const auto found = by_uid.find(call.uid);
  if (found == by_uid.end()) {
    if (call.method == rpc::Method::kState && descriptions_.contains(call.uid))
      return Error{ErrorCode::kNotPermitted,
                   "the server keeps its experts' weights to itself (allow_fetch=False)"};
    return Error{ErrorCode::kExpertNotFound, "no expert '" + call.uid + "' is served here"};
  }
  const TaskPool& pool = pools_[found->second];
  if (const auto rows = pool.check(call); !rows)
    return rows.error();
  if (const auto error = refuse(pool, call))
    return *error;
  if (call.method == rpc::Method::kState && !may_lend_state())
    return Error{ErrorCode::kOverloaded, "too many experts are being fetched", "", 1000};
  return found->second;
}

// A request that would expire in the queue is refused before its bytes are received.
std::optional<Error> Batcher::refuse(const TaskPool& pool, const rpc::Call& call) const {
  const Duration expected = wait(pool.spec().lane, call.priority, clock_.now());
  if (pool.size() >= pool.spec().queue_limit)
    return Error{ErrorCode::kOverloaded, "expert '" + call.uid + "': queue is full", "",
                 retry_after_ms(std::max(expected / 2, 200 * kMillisecond))};
  const double usable =
      kUsableDeadline * static_cast<double>(milliseconds(static_cast<int64_t>(call.deadline_ms)));
  if (call.deadline_ms == 0 || static_cast<double>(expected) <= usable)
    return std::nullopt;
  return Error{ErrorCode::kOverloaded,
               "expert '" + call.uid + "': the wait would be about " +
                   std::to_string(expected / kMillisecond) + " ms, too long for a deadline in " +
                   std::to_string(call.deadline_ms) + " ms",
               "", retry_after_ms(expected - static_cast<Duration>(usable / 2))};
}

// From everything queued before such a request, and what is left of the running batch.
Duration Batcher::wait(uint32_t lane, uint8_t priority, Time now) const {
  Duration total = 0;
  for (const auto& [id, running] : running_) {
    if (pools_[running.pool].spec().lane != lane)
      continue;
    const Duration elapsed = running.started == 0 ? 0 : now - running.started;
    // A batch that takes longer than expected may take longer still.
    total +=
        elapsed <= running.expected ? running.expected - elapsed : (elapsed - running.expected) / 2;
  }
  for (uint32_t pool : lanes_[lane].waiting)
    total += pools_[pool].waiting_time(priority);
  return total;
}

uint64_t Batcher::wait_us() const {
  const std::lock_guard lock(mutex_);
  Duration longest = 0;
  for (uint32_t lane = 0; lane < lanes_.size(); ++lane)
    longest = std::max(longest, wait(lane, 0, clock_.now()));
  return static_cast<uint64_t>(longest / kMicrosecond);
}

void Batcher::submit(rpc::IncomingCall call) {
  {
    const std::lock_guard lock(mutex_);
    if (!stopped_) {
      ++counters_.requests;
      TaskPool& pool = pools_[call.pool];
      Lane& lane = lanes_[pool.spec().lane];
      lane.waiting.insert(call.pool);
      lane.turns.come(call.key.peer, call.arrived);
      pool.push(std::move(call));
      lane.arrived.notify_one();
      return;
    }
  }
  send_fail(call.key, {ErrorCode::kShuttingDown, "the server is shutting down"});
}

void Batcher::cancel(const rpc::CallKey& key) {
  bool removed = false;
  {
    const std::lock_guard lock(mutex_);
    for (uint32_t i = 0; i < pools_.size() && !removed; ++i)
      if ((removed = pools_[i].remove(key)))
        left_queue(i, key.peer);
    if (!removed)
      cancel_running(key);
  }
  if (removed)
    send_fail(key, {ErrorCode::kCancelled, "cancelled by the caller"});
}

// What runs is not stopped, but its result is not made.
void Batcher::cancel_running(const rpc::CallKey& key) {
  for (auto& [id, running] : running_)
    for (size_t i = 0; i < running.calls.size(); ++i)
      if (!running.answered[i] && running.calls[i].key == key)
        running.calls[i].deadline = kCancelled; // nobody reads it while the batch runs
}

void Batcher::left_queue(uint32_t pool, rpc::PeerId peer) {
  Lane& lane = lanes_[pools_[pool].spec().lane];
  lane.turns.leave(peer);
  if (pools_[pool].empty())
    lane.waiting.erase(pool);
}

Result<std::string> Batcher::describe(const std::string& uid) {
  const std::lock_guard lock(mutex_);
  const auto found = descriptions_.find(uid);
  if (found == descriptions_.end())
    return Error{ErrorCode::kExpertNotFound, "no expert '" + uid + "' is served here"};
  return found->second;
}

std::optional<uint32_t> Batcher::next_pool(const Lane& lane, Time now, Time& wake_at) const {
  std::optional<uint32_t> best;
  Time most_urgent = kNever;
  for (uint32_t i : lane.waiting) {
    if (const Time ready_at = pools_[i].ready_at(); ready_at > now) {
      wake_at = std::min(wake_at, ready_at);
    } else if (const Time urgency = pools_[i].urgency(lane.turns); urgency < most_urgent) {
      most_urgent = urgency;
      best = i;
    }
  }
  return best;
}

bool Batcher::prepare(Lane& lane, Time now, Time& wake_at, std::vector<rpc::CallKey>& expired) {
  while (const auto index = next_pool(lane, now, wake_at)) {
    const size_t before = expired.size();
    TaskPool& pool = pools_[*index];
    Running running;
    running.pool = *index;
    running.calls = pool.take(now, lane.turns, expired);
    for (size_t i = before; i < expired.size(); ++i)
      left_queue(*index, expired[i].peer);
    counters_.expired += expired.size() - before;
    for (const rpc::IncomingCall& call : running.calls) {
      left_queue(*index, call.key.peer);
      running.rows += call_rows(call.header);
    }
    if (running.calls.empty())
      continue;
    running.expected = pool.service_time().of(1, running.rows);
    running.left = running.calls.size();
    running.answered.resize(running.left);
    lane.pending = next_id_++;
    running_.emplace(lane.pending, std::move(running));
    return true;
  }
  return false;
}

void Batcher::send_fail(const rpc::CallKey& key, const Error& error) {
  const std::lock_guard lock(port_mutex_);
  if (port_ != nullptr)
    port_->fail(key, error);
}

void Batcher::stop() {
  std::vector<rpc::CallKey> waiting;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    for (TaskPool& pool : pools_)
      for (const rpc::CallKey& key : pool.drain())
        waiting.push_back(key);
    for (Lane& lane : lanes_) {
      lane.waiting.clear();
      lane.arrived.notify_all();
    }
  }
  for (const rpc::CallKey& key : waiting)
    send_fail(key, {ErrorCode::kShuttingDown, "the server is shutting down"});
}

void Batcher::wake() {
  const std::lock_guard lock(mutex_);
  for (Lane& lane : lanes_) {
    lane.woken = true;
    lane.arrived.notify_all();
  }
}

Batcher::Counters Batcher::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

} // namespace lah::batching
