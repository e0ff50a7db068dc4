// The real clock and the real random device. Only net/ and bindings/ may hold them.
#pragma once

#include <array>

#include "base/rng.hpp"
#include "base/time.hpp"

namespace lah::net {

class SystemClock final : public Clock {
public:
  Time now() const override;
  WallMs wall_ms() const override;
};

// Drawn from the system's generator a pool at a time: asking it costs a system call, and every
// packet needs a nonce. Handed-out bytes are wiped. Not to be used on both sides of a fork().
class SystemRng final : public Rng {
public:
  SystemRng();
  void fill(MutableByteView out) override;

private:
  std::array<std::byte, 1024> pool_;
  size_t left_ = 0;
};

// Lets this process open as many files as the system grants without asking anybody; false if that
// is no more than it could before. A process of a thousand nodes needs it, no other pays for it.
bool raise_file_limit();

} // namespace lah::net
