// The real clock and the real random device. Only net/ and bindings/ may hold them.
#pragma once

#include "base/rng.hpp"
#include "base/time.hpp"

namespace lah::net {

class SystemClock final : public Clock {
public:
  Time now() const override;
  WallMs wall_ms() const override;
};

class SystemRng final : public Rng {
public:
  SystemRng();
  void fill(MutableByteView out) override;
};

} // namespace lah::net
