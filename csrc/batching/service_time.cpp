#include "batching/service_time.hpp"

#include <algorithm>

namespace lah::batching {

void ServiceTime::add(uint64_t rows, Duration took) {
  const auto r = static_cast<double>(rows);
  const auto t = static_cast<double>(std::max<Duration>(took, 0));
  const auto fade = [](double& sum, double more) { sum = sum * kKeep + more; };
  fade(weight_, 1.0);
  fade(rows_, r);
  fade(time_, t);
  fade(rows_rows_, r * r);
  fade(rows_time_, r * t);
  const double mean_rows = rows_ / weight_;
  const double mean_time = time_ / weight_;
  const double variance = rows_rows_ / weight_ - mean_rows * mean_rows;
  const double covariance = rows_time_ / weight_ - mean_rows * mean_time;
  // Neither part is negative, and together they give the mean.
  const bool varied = variance > 1e-3 * mean_rows * mean_rows;
  per_row_ = varied ? std::clamp(covariance / variance, 0.0, mean_time / mean_rows) : 0.0;
  per_batch_ = mean_time - per_row_ * mean_rows;
}

Duration ServiceTime::of(uint64_t batches, uint64_t rows) const {
  return static_cast<Duration>(per_batch_ * static_cast<double>(batches) +
                               per_row_ * static_cast<double>(rows));
}

} // namespace lah::batching
