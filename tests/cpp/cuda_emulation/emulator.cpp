#include "cuda_emulation/emulator.hpp"

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

#include "cuda_emulation/fiber.hpp"

namespace lah::cuda_emulation {
namespace {

thread_local std::mt19937 random_bits{1};
thread_local Fiber main_fiber;
thread_local std::vector<std::unique_ptr<Fiber>> fibers; // each runs one thread after the other
thread_local std::vector<Fiber*> idle_fibers;

size_t count(const dim3& size) {
  return size_t{size.x} * size.y * size.z;
}
uint3 position(unsigned number, const dim3& size) {
  return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

std::string hexadecimal(unsigned mask) {
  std::string digits = "0x";
  for (int shift = 28; shift >= 0; shift -= 4)
    digits += "0123456789abcdef"[mask >> shift & 15u];
  return digits;
}
std::string text(const Where& where) {
  const std::string_view path = where.file_name();
  return " at " + std::string(path.substr(path.rfind('/') + 1)) + ":" +
         std::to_string(where.line());
}

struct Thread;

// What lanes of a warp meet at.
struct Meeting {
  const char* operation;
  unsigned mask;
  Lanes value{};
  std::vector<Thread*> waiting{};
};

struct Warp {
  std::list<std::shared_ptr<Meeting>> meetings;
  uint64_t priority;
};

struct Block {
  unsigned number;
  size_t live; // threads that have not returned
  std::vector<Thread> threads{};
  std::vector<Warp> warps{};
  std::vector<Thread*> at_barrier{};
  unsigned votes = 0, counted = 0; // of the barrier that fills, and of the one before
  std::map<const void*, std::shared_ptr<void>> shared{};
  size_t shared_bytes = 0;
};

enum class State { ready, waiting, returned };

struct Thread {
  Block* block;
  unsigned number;
  State state = State::ready;
  Fiber* fiber = nullptr;          // once it has started
  const char* operation = nullptr; // that it waits in
  unsigned mask = 0;               // of a warp's operation
  Where where{};

  Warp& warp() const { return block->warps[number / kWarp]; }
};

struct Abandoned {}; // leaves the threads of a launch that failed

void run_threads();

class Launch {
public:
  const Shape shape;
  std::string error;
  Thread* current = nullptr;

  Launch(const Shape& shape_, const std::function<void()>& thread)
      : shape(shape_), body_(thread), warps_apart_(random_bits() % 2 == 0),
        pending_(count(shape.grid)) {
    for (size_t i = 0; i < pending_.size(); ++i)
      pending_[i] = static_cast<unsigned>(i);
    std::ranges::shuffle(pending_, random_bits);
    const size_t at_once = shape.cooperative ? pending_.size() : 1 + random_bits() % 2;
    for (size_t i = 0; i < at_once; ++i)
      start_block();
  }

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

  void enter(Thread& thread) {
    current = &thread;
    threadIdx = position(thread.number, shape.block);
    blockIdx = position(thread.block->number, shape.grid);
    blockDim = shape.block;
    gridDim = shape.grid;
  }

  void switch_to(Thread& thread, Fiber& from) {
    if (thread.fiber == nullptr) {
      if (idle_fibers.empty())
        idle_fibers.push_back(fibers.emplace_back(std::make_unique<Fiber>(run_threads)).get());
      thread.fiber = idle_fibers.back();
      idle_fibers.pop_back();
    }
    enter(thread);
    thread.fiber->enter(from);
  }

  // From its start to its end.
  void run_current() {
    Thread& thread = *current;
    try {
      if (error.empty())
        body_();
    } catch (const Abandoned&) {
    }
    thread.state = State::returned;
    Block& block = *thread.block;
    --block.live;
    release(block);
    if (block.live == 0)
      end(block);
  }

  void set_waiting(const char* operation, unsigned mask, const Where& where) {
    current->state = State::waiting;
    current->operation = operation;
    current->mask = mask;
    current->where = where;
  }

  // Leaves the current thread until it is ready.
  void wait() {
    Thread& self = *current;
    if (Thread* other = next(); other != &self)
      switch_to(*other, *self.fiber);
    if (!error.empty())
      throw Abandoned();
  }

  void make_ready(Thread& thread) {
    thread.state = State::ready;
    const uint64_t first = warps_apart_ ? thread.warp().priority : 0;
    ready_.emplace(first << 32 | random_bits(), &thread);
  }
  void make_ready(std::vector<Thread*>& threads) {
    for (Thread* thread : threads)
      make_ready(*thread);
    threads.clear();
  }

  unsigned meet_block(bool yes) {
    Block& block = *current->block;
    block.at_barrier.push_back(current);
    block.votes += yes;
    release(block);
    wait();
    return block.counted;
  }

  void meet_grid() {
    at_grid_barrier_.push_back(current);
    if (at_grid_barrier_.size() == count(shape.grid) * count(shape.block))
      make_ready(at_grid_barrier_);
    wait();
  }

  void stop(const std::string& why) {
    if (error.empty())
      error = why;
    pending_.clear();
    at_grid_barrier_.clear();
    for (Block& block : blocks_) {
      block.at_barrier.clear();
      for (Thread& thread : block.threads)
        if (thread.state == State::waiting)
          make_ready(thread);
    }
  }

private:
  void start_block() {
    if (pending_.empty())
      return;
    Block& block = blocks_.emplace_back(Block{.number = pending_.back(), .live = 0});
    pending_.pop_back();
    block.live = count(shape.block);
    block.warps.resize((block.live + kWarp - 1) / kWarp);
    for (Warp& warp : block.warps)
      warp.priority = random_bits();
    for (size_t i = 0; i < block.live; ++i)
      block.threads.push_back({.block = &block, .number = static_cast<unsigned>(i)});
    for (Thread& thread : block.threads)
      make_ready(thread);
  }

  void end(const Block& block) {
    if (!shape.cooperative)
      blocks_.remove_if([&](const Block& other) { return &other == &block; });
    else if (std::ranges::all_of(blocks_, [](const Block& b) { return b.live == 0; }))
      blocks_.clear();
    start_block();
  }

  // As on a GPU, the barrier of a block does not wait for threads that have returned.
  void release(Block& block) {
    if (block.at_barrier.empty() || block.at_barrier.size() < block.live)
      return;
    block.counted = std::exchange(block.votes, 0u);
    make_ready(block.at_barrier);
  }

  // Of the first warp that waits: which lanes wait where.
  std::string waiting_lanes() const {
    for (const Block& block : blocks_)
      for (size_t first = 0; first < block.threads.size(); first += kWarp) {
        std::map<std::string, unsigned> lanes;
        for (unsigned l = 0; l < kWarp; ++l)
          lanes[doing(block, first + l)] |= 1u << l;
        if (lanes.begin()->first.starts_with("wait") || lanes.size() > 1) {
          std::string all =
              "block " + std::to_string(block.number) + ", warp " + std::to_string(first / kWarp);
          for (const auto& [what, mask] : lanes)
            all += "; lanes " + hexadecimal(mask) + " " + what;
          return all;
        }
      }
    return "no thread waits";
  }

  static std::string doing(const Block& block, size_t number) {
    if (number >= block.threads.size())
      return "do not exist";
    const Thread& thread = block.threads[number];
    if (thread.state == State::returned)
      return "have returned";
    return std::string("wait in ") + thread.operation +
           (thread.mask == 0 ? "" : "(" + hexadecimal(thread.mask) + ")") + text(thread.where);
  }

  const std::function<void()>& body_;
  const bool warps_apart_;
  std::vector<unsigned> pending_; // blocks that have not started
  std::list<Block> blocks_;       // that have
  std::priority_queue<std::pair<uint64_t, Thread*>> ready_;
  std::vector<Thread*> at_grid_barrier_;
};

thread_local Launch* launch = nullptr;

// What every fiber runs, for ever.
void run_threads() {
  Fiber& self = Fiber::arrive();
  for (;;) {
    launch->run_current();
    Thread* next = launch->next();
    if (next != nullptr && next->fiber == nullptr) {
      next->fiber = &self;
      launch->enter(*next);
      continue;
    }
    idle_fibers.push_back(&self);
    if (next != nullptr)
      launch->switch_to(*next, self);
    else
      main_fiber.enter(self);
  }
}

} // namespace

void seed(uint32_t value) {
  random_bits.seed(value);
}

std::string run(const Shape& shape, const std::function<void()>& thread) {
  Launch running(shape, thread);
  launch = &running;
  running.switch_to(*running.next(), main_fiber);
  launch = nullptr;
  return running.error;
}

unsigned lane() {
  return launch->current->number % kWarp;
}

Lanes exchange(const char* operation, unsigned mask, uint64_t value, const Where& where) {
  if ((mask >> lane() & 1u) == 0)
    fail(std::string(operation) + ": the calling lane is not in its mask", where);
  auto& open = launch->current->warp().meetings;
  auto found = std::ranges::find_if(open, [&](const auto& meeting) {
    return meeting->mask == mask && std::strcmp(meeting->operation, operation) == 0;
  });
  if (found == open.end())
    found = open.insert(open.end(), std::make_shared<Meeting>(Meeting{operation, mask}));
  const std::shared_ptr<Meeting> meeting = *found;
  meeting->value[lane()] = value;
  meeting->waiting.push_back(launch->current);
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
  if (!launch->shape.cooperative)
    fail("grid sync in a launch that is not cooperative", where);
  launch->set_waiting("grid sync", 0, where);
  launch->meet_grid();
}

void* shared(const void* key, size_t bytes) {
  Block& block = *launch->current->block;
  std::shared_ptr<void>& memory = block.shared[key];
  if (memory == nullptr) {
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

void* dynamic_shared() {
  return shared(nullptr, launch->shape.dynamic_bytes);
}

void fail(const std::string& what, const Where& where) {
  launch->stop(what + text(where));
  throw Abandoned();
}

} // namespace lah::cuda_emulation
