#include "net/system.hpp"

#include <sodium.h>

#include <chrono>

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
  randombytes_buf(out.data(), out.size());
}

} // namespace lah::net
