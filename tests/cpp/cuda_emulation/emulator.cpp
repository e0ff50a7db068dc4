#undef _FORTIFY_SOURCE // its longjmp refuses to go from one stack to another

#include "cuda_emulation/emulator.hpp"

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <new>
#include <queue>
#include <random>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
#include <csetjmp>
#endif

namespace lah::cuda_emulation {
namespace {

struct Thread;

// A stack, which runs one thread after the other.
struct Fiber {
  bool started = false;
  ucontext_t context{};
  std::unique_ptr<char[]> memory;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#else
  std::jmp_buf jump{};
#endif
  Thread* thread = nullptr;
};
constexpr size_t kStackBytes = 128 << 10;

thread_local std::mt19937 random_bits{1};
thread_local Fiber main_fiber;
thread_local Fiber* entered = nullptr; // by the last switch
thread_local std::vector<std::unique_ptr<Fiber>> fibers;
thread_local std::vector<Fiber*> idle_fibers;

#if defined(__SANITIZE_ADDRESS__)
thread_local Fiber* left = nullptr;

void after_switch(Fiber& self) {
  __sanitizer_finish_switch_fiber(self.fake_stack, &left->stack, &left->stack_bytes);
}
void switch_fiber(Fiber& from, Fiber& to) {
  left = &from;
  entered = &to;
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
  swapcontext(&from.context, &to.context);
  after_switch(from);
}
#else
void after_switch(Fiber& self) {
  self.started = true;
}
// swapcontext makes a system call: it serves for the first entry alone.
void switch_fiber(Fiber& from, Fiber& to) {
  entered = &to;
  if (_setjmp(from.jump) != 0)
    return;
  if (to.started)
    _longjmp(to.jump, 1);
  swapcontext(&from.context, &to.context);
}
#endif

void run_threads();

Fiber& idle_fiber() {
  if (idle_fibers.empty()) {
    auto fiber = std::make_unique<Fiber>();
    fiber->memory = std::make_unique_for_overwrite<char[]>(kStackBytes);
    fiber->stack = fiber->memory.get();
    fiber->stack_bytes = kStackBytes;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->memory.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber->context, run_threads, 0);
    idle_fibers.push_back(fiber.get());
    fibers.push_back(std::move(fiber));
  }
  Fiber& fiber = *idle_fibers.back();
  idle_fibers.pop_back();
  return fiber;
}

// What lanes of a warp meet at.
struct Meeting {
  const char* operation;
  unsigned mask;
  Lanes value{};
  std::vector<Thread*> waiting;
};

struct Warp {
  std::list<std::shared_ptr<Meeting>> meetings;
  uint64_t priority;
};

struct Block;
enum class State { ready, waiting, exited };

struct Thread {
  Block* block;
  unsigned number;
  State state = State::ready;
  Fiber* fiber = nullptr;
  const char* operation = nullptr; // that it waits in
  unsigned mask = 0;               // of a warp's operation
  Where where{};

  uint3 index(const dim3& size) const {
    return {number % size.x, number / size.x % size.y, number / size.x / size.y};
  }
  Warp& warp() const;
};

struct Block {
  unsigned number;
  size_t live = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> at_barrier;
  unsigned votes = 0, counted = 0; // of the barrier that fills, and of the one before
  std::map<const void*, std::shared_ptr<void>> shared;
  size_t shared_bytes = 0;

  uint3 index(const dim3& grid) const {
    return {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  }
};

Warp& Thread::warp() const {
  return block->warps[number / kWarp];
}

struct Abandoned {}; // leaves the threads of a launch that failed

size_t count(const dim3& size) {
  return size_t{size.x} * size.y * size.z;
}

std::string text(const Where& where) {
  const std::string_view path = where.file_name();
  return " at " + std::string(path.substr(path.rfind('/') + 1)) + ":" +
         std::to_string(where.line());
}

std::string hexadecimal(unsigned mask) {
  std::string digits = "0x";
  for (int shift = 28; shift >= 0; shift -= 4)
    digits += "0123456789abcdef"[mask >> shift & 15u];
  return digits;
}

class Launch {
public:
  Launch(const Shape& shape, const std::function<void()>& thread)
      : shape_(shape), body_(thread), warps_apart_(random_bits() % 2 == 0),
        pending_(count(shape.grid)) {
    for (size_t i = 0; i < pending_.size(); ++i)
      pending_[i] = static_cast<unsigned>(i);
    std::shuffle(pending_.begin(), pending_.end(), random_bits);
    const size_t at_once = shape.cooperative ? pending_.size() : 1 + random_bits() % 2;
    for (size_t i = 0; i < at_once; ++i)
      start_block();
  }

  Thread& current() { return *current_; }
  const Shape& shape() const { return shape_; }
  const std::string& error() const { return error_; }

  // The thread to run next, or null after the last.
  Thread* next() {
    if (ready_.empty() && !blocks_.empty())
      stop("deadlock: " + waiting_lanes());
    if (ready_.empty())
      return nullptr;
    Thread* thread = ready_.top().second;
    ready_.pop();
    return thread;
  }

  void run(Thread& thread) {
    enter(thread);
    try {
      if (error_.empty())
        body_();
    } catch (const Abandoned&) {
    }
    exit(thread);
  }

  // Leaves the current thread until it is ready.
  void wait() {
    Thread& self = *current_;
    Thread* other = next();
    if (other != &self) {
      if (other->fiber == nullptr) {
        other->fiber = &idle_fiber();
        other->fiber->thread = other;
      }
      switch_fiber(*self.fiber, *other->fiber);
    }
    enter(self);
    if (!error_.empty())
      throw Abandoned();
  }

  void make_ready(std::vector<Thread*>& threads) {
    for (Thread* thread : threads)
      make_ready(*thread);
    threads.clear();
  }

  void set_waiting(const char* operation, unsigned mask, const Where& where) {
    current_->state = State::waiting;
    current_->operation = operation;
    current_->mask = mask;
    current_->where = where;
  }

  unsigned meet_block(bool yes) {
    Block& block = *current_->block;
    block.at_barrier.push_back(current_);
    block.votes += yes;
    release_block(block);
    wait();
    return block.counted;
  }

  void meet_grid() {
    at_grid_barrier_.push_back(current_);
    if (at_grid_barrier_.size() == count(shape_.grid) * count(shape_.block))
      make_ready(at_grid_barrier_);
    wait();
  }

  void stop(const std::string& error) {
    if (error_.empty())
      error_ = error;
    pending_.clear();
    for (auto& block : blocks_) {
      for (Thread& thread : block.threads)
        if (thread.state == State::waiting)
          make_ready(thread);
      block.at_barrier.clear();
    }
    at_grid_barrier_.clear();
  }

private:
  void start_block() {
    if (pending_.empty())
      return;
    Block& block = blocks_.emplace_back();
    block.number = pending_.back();
    pending_.pop_back();
    block.live = count(shape_.block);
    block.warps.resize((block.live + kWarp - 1) / kWarp);
    for (Warp& warp : block.warps)
      warp.priority = random_bits();
    for (size_t i = 0; i < block.live; ++i)
      block.threads.push_back({.block = &block, .number = static_cast<unsigned>(i)});
    for (Thread& thread : block.threads)
      make_ready(thread);
  }

  void make_ready(Thread& thread) {
    thread.state = State::ready;
    const uint64_t first = warps_apart_ ? thread.warp().priority : 0;
    ready_.emplace(first << 32 | random_bits(), &thread);
  }

  void enter(Thread& thread) {
    current_ = &thread;
    threadIdx = thread.index(shape_.block);
    blockIdx = thread.block->index(shape_.grid);
    blockDim = shape_.block;
    gridDim = shape_.grid;
  }

  void exit(Thread& thread) {
    thread.state = State::exited;
    Block& block = *thread.block;
    --block.live;
    release_block(block);
    if (block.live > 0)
      return;
    if (!shape_.cooperative)
      blocks_.remove_if([&](const Block& other) { return &other == &block; });
    else if (std::ranges::all_of(blocks_, [](const Block& b) { return b.live == 0; }))
      blocks_.clear();
    start_block();
  }

  // As on a GPU, threads that have returned are not waited for.
  void release_block(Block& block) {
    if (block.at_barrier.empty() || block.at_barrier.size() < block.live)
      return;
    block.counted = std::exchange(block.votes, 0u);
    make_ready(block.at_barrier);
  }

  // Of the first warp that waits: which lanes wait where.
  std::string waiting_lanes() const {
    for (const Block& block : blocks_) {
      for (size_t first = 0; first < block.threads.size(); first += kWarp) {
        std::map<std::string, unsigned> lanes;
        for (unsigned l = 0; l < kWarp; ++l) {
          const bool exists = first + l < block.threads.size();
          const Thread* thread = exists ? &block.threads[first + l] : nullptr;
          lanes[!exists                          ? "do not exist"
                : thread->state == State::exited ? "have returned"
                                                 : waits(*thread)] |= 1u << l;
        }
        if (lanes.size() == 1 && lanes.begin()->first == "have returned")
          continue;
        std::string all =
            "block " + std::to_string(block.number) + ", warp " + std::to_string(first / kWarp);
        for (const auto& [what, mask] : lanes)
          all += "; lanes " + hexadecimal(mask) + " " + what;
        return all;
      }
    }
    return "no thread waits";
  }

  static std::string waits(const Thread& thread) {
    return std::string("wait in ") + thread.operation +
           (thread.mask == 0 ? "" : "(" + hexadecimal(thread.mask) + ")") + text(thread.where);
  }

  const Shape shape_;
  const std::function<void()>& body_;
  const bool warps_apart_;
  std::vector<unsigned> pending_; // blocks that have not started
  std::list<Block> blocks_;       // that have
  std::priority_queue<std::pair<uint64_t, Thread*>> ready_;
  std::vector<Thread*> at_grid_barrier_;
  Thread* current_ = nullptr;
  std::string error_;
};

thread_local Launch* launch = nullptr;

// What every fiber runs, for ever.
void run_threads() {
  Fiber& self = *entered;
  after_switch(self);
  for (;;) {
    launch->run(*self.thread);
    Thread* next = launch->next();
    if (next != nullptr && next->fiber == nullptr) {
      self.thread = next;
      next->fiber = &self;
      continue;
    }
    idle_fibers.push_back(&self);
    switch_fiber(self, next == nullptr ? main_fiber : *next->fiber);
  }
}

} // namespace

void seed(uint32_t value) {
  random_bits.seed(value);
}

std::string run(const Shape& shape, const std::function<void()>& thread) {
  main_fiber.started = true;
  Launch running(shape, thread);
  launch = &running;
  Thread* first = running.next();
  first->fiber = &idle_fiber();
  first->fiber->thread = first;
  switch_fiber(main_fiber, *first->fiber);
  launch = nullptr;
  return running.error();
}

unsigned lane() {
  return launch->current().number % kWarp;
}

Lanes exchange(const char* operation, unsigned mask, uint64_t value, const Where& where) {
  if ((mask >> lane() & 1u) == 0)
    fail(std::string(operation) + ": the calling lane is not in its mask", where);
  auto& open = launch->current().warp().meetings;
  auto found = std::ranges::find_if(open, [&](const auto& meeting) {
    return meeting->mask == mask && std::strcmp(meeting->operation, operation) == 0;
  });
  if (found == open.end())
    found = open.insert(open.end(), std::make_shared<Meeting>(operation, mask));
  const std::shared_ptr<Meeting> meeting = *found;
  meeting->value[lane()] = value;
  meeting->waiting.push_back(&launch->current());
  launch->set_waiting(operation, mask, where);
  if (meeting->waiting.size() == static_cast<size_t>(std::popcount(mask))) {
    open.erase(found);
    launch->make_ready(meeting->waiting);
  }
  launch->wait();
  return meeting->value;
}

unsigned sync_block(bool yes, const Where& where) {
  launch->set_waiting("__syncthreads", 0, where);
  return launch->meet_block(yes);
}

void sync_grid(const Where& where) {
  if (!launch->shape().cooperative)
    fail("grid sync in a launch that is not cooperative", where);
  launch->set_waiting("grid sync", 0, where);
  launch->meet_grid();
}

void* shared(const void* key, size_t bytes) {
  Block& block = *launch->current().block;
  std::shared_ptr<void>& memory = block.shared[key];
  if (memory == nullptr) {
    if (key == nullptr)
      bytes = launch->shape().dynamic_bytes;
    block.shared_bytes += bytes;
    if (block.shared_bytes > kSharedBytes)
      fail("more than 48 KiB of shared memory", Where::current());
    constexpr std::align_val_t kAlign{128};
    memory = {::operator new(bytes, kAlign), [](void* p) { ::operator delete(p, kAlign); }};
    std::generate_n(static_cast<unsigned char*>(memory.get()), bytes,
                    [] { return static_cast<unsigned char>(random_bits()); });
  }
  return memory.get();
}

void fail(const std::string& what, const Where& where) {
  launch->stop(what + text(where));
  throw Abandoned();
}

} // namespace lah::cuda_emulation
