#include <cuda_fp8.h>

#include "ops/cuda/common.cuh"
#include "ops/cuda/rows.cuh"

namespace lah::ops::cuda {
namespace {

// What rows are made of, and how, as in cpu/quantized.cpp.
struct Int8 {
  using type = int8_t;
  static constexpr float kLargest = 127.0f;
  static __device__ int8_t narrow(float x) { // adding 1.5 * 2^23 rounds to the nearest even integer
    return static_cast<int8_t>(__float_as_int(__fadd_rn(x, 12582912.0f)) & 0xff);
  }
  static __device__ float widen(int8_t x) { return static_cast<float>(x); }
};
struct E4m3 {
  using type = __nv_fp8_storage_t;
  static constexpr float kLargest = 448.0f;
  static __device__ type narrow(float x) {
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
  }
  static __device__ float widen(type x) {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(x, __NV_E4M3)));
  }
};
struct Bf16 { // never scaled
  using type = __nv_bfloat16;
  static constexpr float kLargest = 1.0f;
  static __device__ type narrow(float x) { return __float2bfloat16_rn(x); }
  static __device__ float widen(type x) { return __bfloat162float(x); }
};

struct Scale {
  float value;
  float inverse; // 0: the elements become zeros
};

// The same bits as in cpu/quantized.cpp.
__device__ Scale scale_of(uint32_t absmax, float largest) {
  if (absmax >= 0x7f800000u)
    return {__uint_as_float(0x7fc00000u), 0.0f};
  if (absmax == 0)
    return {0.0f, 0.0f};
  const float scale = fmaxf(__fdiv_rn(__uint_as_float(absmax), largest), 0x1p-126f);
  return {scale, __frcp_rn(scale)};
}

// One token, in vectors of n elements: `width` vectors make a row, `lanes` neighbours of a warp
// share a block of it.
template <class code, class scalar, int n> struct Token {
  using From = Vector<scalar, n>;
  using To = Vector<typename code::type, n>;
  const From* x;
  To* rows;
  const int64_t* row; // of each choice, or -1
  int64_t choices, width;

  // The largest magnitude of vectors begin, begin + step, ..., as bits: they are ordered as the
  // floats are, with NaN above infinity.
  __device__ uint32_t absmax(int64_t begin, int64_t end, int64_t step) const {
    uint32_t largest = 0;
    for (int64_t i = begin; i < end; i += step) {
      const From v = x[i];
#pragma unroll
      for (int e = 0; e < n; ++e)
        largest = max(largest, __float_as_uint(widen(v.element[e])) & 0x7fffffffu);
    }
    return largest;
  }

  __device__ void store(int64_t begin, int64_t end, int64_t step, float inverse) const {
    for (int64_t i = begin; i < end; i += step) {
      const From v = x[i];
      To out;
#pragma unroll
      for (int e = 0; e < n; ++e)
        out.element[e] =
            code::narrow(inverse > 0.0f ? __fmul_rn(widen(v.element[e]), inverse) : 0.0f);
      for (int64_t j = 0; j < choices; ++j)
        if (row[j] >= 0)
          rows[row[j] * width + i] = out;
    }
  }
};

// The largest of a block's threads, for all of them.
__device__ uint32_t block_max(uint32_t x) {
  __shared__ uint32_t of_warp[kThreads / kWarp];
  x = __reduce_max_sync(kAllLanes, x);
  if (lane_id() == 0)
    of_warp[warp_of_block()] = x;
  __syncthreads();
  for (int w = 0; w < kThreads / kWarp; ++w)
    x = max(x, of_warp[w]);
  return x;
}

// A block a token, which comes from memory once: the second reading hits the cache.
template <class code, class scalar, int n>
__global__ void __launch_bounds__(kThreads)
    dispatch_quantized_kernel(DispatchQuantizedArgs a, int lanes) {
  const int64_t token = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  __shared__ int64_t row[kMaxChoices];
  bool live = false;
  if (thread < a.plan.choices) {
    const int64_t assignment = token * a.plan.choices + thread;
    const int64_t r = live_row(a.plan, assignment);
    row[thread] = r;
    live = r >= 0;
    if (live)
      a.source[r] = static_cast<int32_t>(assignment);
  }
  if (!__syncthreads_or(live))
    return;
  using Work = Token<code, scalar, n>;
  const int64_t width = a.hidden / n;
  const Work work{static_cast<const typename Work::From*>(a.x) + token * width,
                  static_cast<typename Work::To*>(a.rows), row, a.plan.choices, width};

  if (a.blocks == 0) { // no scale
    work.store(thread, width, kThreads, 1.0f);
  } else if (a.blocks == 1) { // all threads share one scale
    const Scale scale = scale_of(block_max(work.absmax(thread, width, kThreads)), code::kLargest);
    if (thread < a.plan.choices && row[thread] >= 0)
      a.scale[row[thread]] = scale.value;
    work.store(thread, width, kThreads, scale.inverse);
  } else { // every `lanes` threads share one; the trip count is that of the whole warp
    const int64_t vectors = a.block / n;
    const int lane = thread % lanes;
    for (int64_t first = warp_of_block() * (kWarp / lanes); first < a.blocks;
         first += kThreads / lanes) {
      const int64_t b = first + lane_id() / lanes;
      const int64_t end = min((b + 1) * vectors, width);
      uint32_t largest = work.absmax(b * vectors + lane, end, lanes);
      for (int step = lanes / 2; step > 0; step /= 2)
        largest = max(largest, __shfl_xor_sync(kAllLanes, largest, step));
      const Scale scale = scale_of(largest, code::kLargest);
      for (int64_t j = lane; j < a.plan.choices; j += lanes)
        if (b < a.blocks && row[j] >= 0)
          a.scale[row[j] * a.blocks + b] = scale.value;
      work.store(b * vectors + lane, end, lanes, scale.inverse);
    }
  }
}

// The least power of two of lanes, up to a warp, that gives each at most one of `vectors`.
int lanes_for(int64_t vectors) {
  int lanes = 1;
  while (lanes < kWarp && lanes < vectors)
    lanes *= 2;
  return lanes;
}

// A block a row, so that no thread divides to find its row.
template <class code, class scalar, int n>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(DequantizeArgs a) {
  using From = Vector<typename code::type, n>;
  using To = Vector<scalar, n>;
  const int64_t row = blockIdx.x;
  const auto width = static_cast<uint32_t>(a.hidden / n);
  const auto vectors = static_cast<uint32_t>(a.block / n); // of a block of the row
  const From* from = static_cast<const From*>(a.rows) + row * width;
  To* to = static_cast<To*>(a.out) + row * width;
  const float* scale = a.scale + row * a.blocks;
  for (uint32_t i = threadIdx.x; i < width; i += kThreads) {
    const float factor = a.blocks == 0 ? 1.0f : scale[a.blocks == 1 ? 0 : i / vectors];
    const From v = from[i];
    To out;
#pragma unroll
    for (int e = 0; e < n; ++e)
      out.element[e] = narrow<scalar>(__fmul_rn(code::widen(v.element[e]), factor));
    to[i] = out;
  }
}

template <class Function> const char* with_code(Quantized quantized, const Function& f) {
  switch (quantized) {
  case Quantized::int8:
    return f(Int8{});
  case Quantized::e4m3:
    return f(E4m3{});
  case Quantized::bf16:
    return f(Bf16{});
  }
  return "unknown dtype of rows";
}

int64_t bytes_of(Quantized quantized) {
  return quantized == Quantized::bf16 ? 2 : 1;
}

const char* launch(const DispatchQuantizedArgs& a, Scalar dtype, Quantized quantized,
                   cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(a.plan.tokens);
  return with_code(quantized, [&](auto code) {
    return with_vector(
        dtype, a.hidden,
        [&](auto type, auto n) {
          constexpr int kVector = decltype(n)::value;
          dispatch_quantized_kernel<decltype(code), decltype(type), kVector>
              <<<blocks, kThreads, 0, stream>>>(a, lanes_for(a.block / kVector));
        },
        a.x, a.rows);
  });
}

} // namespace

const char* dispatch_quantized(const DispatchQuantizedArgs& a, Scalar dtype, Quantized quantized,
                               void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.plan.rows == 0)
    return nullptr;
  const char* error = forget_sources(a.source, a.plan.rows, stream);
  if (error == nullptr && a.plan.tokens > 0)
    error = launch(a, dtype, quantized, stream);
  if (error == nullptr)
    error = clear_unowned(a.rows, a.source, a.plan.rows, a.hidden * bytes_of(quantized), stream);
  if (error == nullptr)
    error = clear_unowned(a.scale, a.source, a.plan.rows,
                          a.blocks * static_cast<int64_t>(sizeof(float)), stream);
  return error;
}

const char* dequantize(const DequantizeArgs& a, Scalar dtype, Quantized quantized,
                       void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (a.count == 0)
    return nullptr;
  const auto blocks = static_cast<unsigned>(a.count);
  return with_code(quantized, [&](auto code) {
    return with_vector(
        dtype, a.hidden,
        [&](auto type, auto n) {
          dequantize_kernel<decltype(code), decltype(type), decltype(n)::value>
              <<<blocks, kThreads, 0, stream>>>(a);
        },
        a.rows, a.out);
  });
}

} // namespace lah::ops::cuda
