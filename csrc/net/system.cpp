#include "net/system.hpp"

#include <sodium.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "crypto/identity.hpp"

namespace lah::net {

Time SystemClock::now() const {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

WallMs SystemClock::wall_ms() const {
  return static_cast<WallMs>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                 std::chrono::system_clock::now().time_since_epoch())
                                 .count());
}

SystemRng::SystemRng() {
  crypto::initialize();
}

void SystemRng::fill(MutableByteView out) {
  if (out.size() > pool_.size()) {
    randombytes_buf(out.data(), out.size());
    return;
  }
  if (left_ < out.size()) {
    randombytes_buf(pool_.data(), pool_.size());
    left_ = pool_.size();
  }
  std::byte* taken = pool_.data() + (left_ - out.size());
  std::memcpy(out.data(), taken, out.size());
  sodium_memzero(taken, out.size());
  left_ -= out.size();
}

bool raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max)
    return false;
  const rlim_t before = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
    return true;
  limit.rlim_cur =
      std::min<rlim_t>(limit.rlim_max, 10'240); // macOS takes no more, whatever it says
  return limit.rlim_cur > before && setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

} // namespace lah::net
