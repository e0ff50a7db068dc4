// Runs CUDA kernels on the CPU, so that their logic is tested where there is no GPU: every thread
// is a fiber of the calling OS thread, and runs until it waits for others.
//
// Between two points of synchronisation threads run in a random order, whole warps ahead of others
// in every second launch: a missing __syncwarp or __syncthreads gives wrong results under some
// seed. What would hang on a GPU, or is undefined there, makes the launch fail with a message that
// says which lanes wait where. Not emulated: memory ordering (a __syncwarp beside another operation
// of the warp is not missed), and accesses that interleave without synchronisation between them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Those of the thread that runs.
inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

namespace lah::cuda_emulation {

constexpr unsigned kWarp = 32;
constexpr unsigned kProcessors = 2, kBlocksPerProcessor = 2; // what a cooperative launch may fill
constexpr size_t kSharedBytes = 48 << 10;                    // of a block

using Where = std::source_location;
using Lanes = std::array<uint64_t, kWarp>;

// Kernels and memsets so far, in this OS thread.
inline thread_local uint64_t enqueued = 0;

// The order of threads in the launches that follow.
void seed(uint32_t value);

struct Shape {
  dim3 grid, block;
  size_t dynamic_bytes = 0; // of shared memory
  bool cooperative = false; // all blocks at once
};
// Calls thread() as every thread of the grid. Returns what went wrong, or an empty string.
std::string run(const Shape& shape, const std::function<void()>& thread);

// For device code. All of them throw where the launch fails, to leave the thread.

unsigned lane();
// Waits for all lanes of `mask` to call the same operation with the same mask, and returns the
// values of all.
Lanes exchange(const char* operation, unsigned mask, uint64_t value, const Where& where);
// Waits for all threads of the block that have not returned; how many of them said yes.
unsigned sync_block(bool yes, const Where& where);
void sync_grid(const Where& where);
// The block's own memory for `key`; random bytes at first.
void* shared(const void* key, size_t bytes);
[[noreturn]] void fail(const std::string& what, const Where& where);

// A variable in shared memory; `Key` is a type of its own for each declaration.
template <class T, class Key> T& shared(Key) {
  static const char key = 0;
  return *static_cast<T*>(shared(&key, sizeof(T)));
}
void* dynamic_shared(); // what the launch asked for

} // namespace lah::cuda_emulation
