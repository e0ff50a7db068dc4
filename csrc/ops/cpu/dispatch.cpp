#include "ops/cpu/simd.h"

namespace lah::ops::cpu {

// Token-major: each token is read once and stored k times, in the order of the tokens.
void dispatch(const DispatchArgs& a, int64_t begin, int64_t end) {
  const auto* x = static_cast<const char*>(a.x);
  auto* rows = static_cast<char*>(a.rows);
  const bool stream = can_stream(rows, a.row_bytes, a.plan.rows * a.row_bytes);
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t i = t * a.plan.choices; i < (t + 1) * a.plan.choices; ++i) {
      const int64_t row = live_row(a.plan, i);
      if (row < 0)
        continue;
      copy(rows + row * a.row_bytes, x + t * a.row_bytes, a.row_bytes, stream);
      a.source[row] = static_cast<int32_t>(i);
    }
  }
  stream_fence(stream);
}

void clear_unowned(void* rows, const int32_t* source, int64_t row_bytes, int64_t begin,
                   int64_t end) {
  if (row_bytes == 0)
    return; // rows may be null
  for (int64_t row = begin; row < end; ++row)
    if (source[row] < 0)
      std::memset(static_cast<char*>(rows) + row * row_bytes, 0, static_cast<size_t>(row_bytes));
}

} // namespace lah::ops::cpu
