#pragma once

#include <cstdint>

#include "base/bytes.hpp"

namespace lah {

// The only source of randomness of every core: libsodium's in a process, a seeded one in the
// simulator.
class Rng {
public:
  virtual ~Rng() = default;
  virtual void fill(MutableByteView out) = 0;

  uint64_t u64() {
    uint64_t value = 0;
    fill(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  // Uniform in [0, bound); the bias of the modulo is below 2^-32 for every bound used here.
  uint64_t below(uint64_t bound) { return bound == 0 ? 0 : u64() % bound; }
};

// xoshiro256** (Blackman and Vigna, 2018) seeded by splitmix64: repeatable, never for secrets.
class SeededRng final : public Rng {
public:
  explicit SeededRng(uint64_t seed);
  void fill(MutableByteView out) override;

private:
  uint64_t next();
  uint64_t state_[4];
};

} // namespace lah
