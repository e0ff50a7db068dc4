// The emulation that the tests of the CUDA kernels rest on.
#include <gmock/gmock.h>

#include <numeric>
#include <vector>

#include "cuda_emulation/cooperative_groups.h"
#include "cuda_emulation/cuda_runtime.h"

namespace lah::cuda_emulation {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string failure() {
  const cudaError_t error = cudaGetLastError();
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "an error is reported once";
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

struct CudaEmulationTest : testing::TestWithParam<uint32_t> {
  CudaEmulationTest() { seed(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Seeds, CudaEmulationTest, testing::Range(1u, 9u));

void collectives(std::array<unsigned, 12>* out) {
  const unsigned l = threadIdx.x % 32, i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = {__shfl_sync(~0u, i, 5),
            __shfl_up_sync(~0u, l, 1),
            __shfl_down_sync(~0u, l, 2),
            __shfl_xor_sync(~0u, l, 16),
            __ballot_sync(~0u, l % 3 == 0),
            __match_any_sync(~0u, l / 8),
            static_cast<unsigned>(__any_sync(~0u, l == 7)),
            static_cast<unsigned>(__all_sync(~0u, l == 7)),
            __reduce_max_sync(~0u, l * 7 % 32),
            __reduce_add_sync(~0u, l),
            l < 8 ? __shfl_xor_sync(0xffu, l, 7, 8) : 0,
            static_cast<unsigned>(__syncthreads_count(i % 2 == 0))};
}

TEST_P(CudaEmulationTest, Collectives) {
  std::vector<std::array<unsigned, 12>> out(3 * 64);
  launch(collectives, 3, 64)(out.data());
  EXPECT_EQ(failure(), "");
  for (unsigned i = 0; i < out.size(); ++i) {
    const unsigned l = i % 32;
    const std::array<unsigned, 12> want{i - l + 5,
                                        l == 0 ? 0 : l - 1,
                                        l >= 30 ? l : l + 2,
                                        l ^ 16,
                                        0x49249249,
                                        0xffu << l / 8 * 8,
                                        1,
                                        0,
                                        31,
                                        31 * 16,
                                        l < 8 ? 7 - l : 0,
                                        32};
    EXPECT_EQ(out[i], want) << i;
  }
}

// Every thread's number travels once around its block.
void rotate_in_shared(unsigned* out, bool synchronized) {
  auto& memory = shared<unsigned[96]>([] {});
  memory[threadIdx.x] = threadIdx.x + 1000 * blockIdx.x;
  if (synchronized)
    __syncthreads();
  out[blockIdx.x * 96 + threadIdx.x] = memory[(threadIdx.x + 40) % 96];
}

unsigned wrong_after_rotation(bool synchronized) {
  std::vector<unsigned> out(5 * 96);
  launch(rotate_in_shared, 5, 96)(out.data(), synchronized);
  EXPECT_EQ(failure(), "");
  unsigned wrong = 0;
  for (unsigned i = 0; i < out.size(); ++i)
    wrong += out[i] != i / 96 * 1000 + (i % 96 + 40) % 96;
  return wrong;
}

TEST_P(CudaEmulationTest, ABarrierOrdersAndItsAbsenceShows) {
  EXPECT_EQ(wrong_after_rotation(true), 0u);
  EXPECT_GT(wrong_after_rotation(false), 0u);
}

void one_lane_returns() {
  if (threadIdx.x == 37)
    return;
  __shfl_sync(~0u, 1, 0);
}
void lanes_part() {
  if (threadIdx.x % 32 < 16)
    __ballot_sync(~0u, 1);
  else
    __syncthreads();
}
void a_lane_is_not_named() {
  __syncwarp(0x7fffffffu);
}
void an_unnamed_lane_is_read() {
  if (threadIdx.x < 4)
    __shfl_sync(0xfu, 1, 4);
}
void blocks_wait_for_each_other() {
  cooperative_groups::this_grid().sync();
}
void too_much_is_shared() {
  shared<char[kSharedBytes + 1]>([] {});
}

TEST_P(CudaEmulationTest, WhatHangsOrIsUndefinedFails) {
  launch(one_lane_returns, 2, 64)();
  EXPECT_THAT(failure(), AllOf(HasSubstr("warp 1; lanes 0x00000020 have returned"),
                               HasSubstr("0xffffffdf wait in __shfl_sync(0xffffffff) at test_")));
  launch(lanes_part, 1, 32)();
  EXPECT_THAT(failure(), AllOf(HasSubstr("0x0000ffff wait in __ballot_sync(0xffffffff)"),
                               HasSubstr("0xffff0000 wait in __syncthreads at test_")));
  launch(lanes_part, 1, 20)();
  EXPECT_THAT(failure(), HasSubstr("lanes 0xfff00000 do not exist"));
  launch(a_lane_is_not_named, 1, 32)();
  EXPECT_THAT(failure(), HasSubstr("__syncwarp: the calling lane is not in its mask"));
  launch(an_unnamed_lane_is_read, 1, 32)();
  EXPECT_THAT(failure(), HasSubstr("__shfl_sync reads a lane that is not in the mask"));
  launch(blocks_wait_for_each_other, 2, 32)();
  EXPECT_THAT(failure(), HasSubstr("not cooperative"));
  launch(too_much_is_shared, 1, 32)();
  EXPECT_THAT(failure(), HasSubstr("48 KiB"));
  launch(one_lane_returns, 0, 32)();
  EXPECT_EQ(failure(), "invalid configuration argument");
  launch(one_lane_returns, 1, 1025)();
  EXPECT_EQ(failure(), "invalid configuration argument");
  EXPECT_EQ(wrong_after_rotation(true), 0u); // and the next launch works
}

void returned_threads_are_not_waited_for(unsigned* out) {
  if (threadIdx.x % 2 == 0)
    return;
  __syncthreads();
  atomicAdd(out, 1);
}

TEST_P(CudaEmulationTest, ABarrierIsOfThreadsThatHaveNotReturned) {
  unsigned count = 0;
  launch(returned_threads_are_not_waited_for, 3, 70)(&count);
  EXPECT_EQ(failure(), "");
  EXPECT_EQ(count, 3u * 35u);
}

// Sums over blocks, each of which keeps its part in shared memory over the barrier.
void sum_over_blocks(unsigned* part, unsigned* total) {
  auto& mine = shared<unsigned>([] {});
  if (threadIdx.x == 0)
    part[blockIdx.x] = mine = blockIdx.x + 1;
  cooperative_groups::this_grid().sync();
  if (threadIdx.x == 33)
    for (unsigned b = 0; b < gridDim.x; ++b)
      total[blockIdx.x] += part[b] * mine;
}

TEST_P(CudaEmulationTest, ACooperativeLaunchHasAGridBarrier) {
  int processors = 0, per_processor = 0;
  EXPECT_EQ(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
  EXPECT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, sum_over_blocks, 64, 0),
            cudaSuccess);
  const auto blocks = static_cast<unsigned>(processors * per_processor);
  std::vector<unsigned> part(blocks), total(blocks);
  unsigned* pointers[] = {part.data(), total.data()};
  void* arguments[] = {&pointers[0], &pointers[1]};
  EXPECT_EQ(cudaLaunchCooperativeKernel(sum_over_blocks, blocks, 64, arguments), cudaSuccess);
  EXPECT_EQ(failure(), "");
  const unsigned sum = blocks * (blocks + 1) / 2;
  for (unsigned b = 0; b < blocks; ++b)
    EXPECT_EQ(total[b], sum * (b + 1));
  EXPECT_NE(cudaLaunchCooperativeKernel(sum_over_blocks, blocks + 1, 64, arguments), cudaSuccess);
  EXPECT_THAT(failure(), HasSubstr("too many blocks"));
}

} // namespace
} // namespace lah::cuda_emulation
