// How long batches of a pool take, learnt from those that ran.
#pragma once

#include "base/time.hpp"

namespace lah::batching {

// A fixed time for each batch and one for each row: least squares over batches that fade by kKeep
// with every new one. Batches of one size only tell their total, which then counts as fixed.
class ServiceTime {
public:
  void add(uint64_t rows, Duration took);
  Duration of(uint64_t batches, uint64_t rows) const; // 0 before the first batch

private:
  static constexpr double kKeep = 0.9;
  double weight_ = 0.0;
  double rows_ = 0.0; // sums over the batches, each by its weight
  double time_ = 0.0;
  double rows_rows_ = 0.0;
  double rows_time_ = 0.0;
  double per_batch_ = 0.0;
  double per_row_ = 0.0;
};

} // namespace lah::batching
