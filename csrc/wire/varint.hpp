// Unsigned numbers in as few bytes as they need, seven bits each, the lowest first.
#pragma once

#include "base/bytes.hpp"

namespace lah::wire {

inline void put_varint(Buffer& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7)
    out.push_back(static_cast<std::byte>(value | 0x80));
  out.push_back(static_cast<std::byte>(value));
}

// Takes one number off the front; false if it is cut short or longer than 63 bits.
inline bool take_varint(ByteView& in, uint64_t& value) {
  value = 0;
  for (unsigned shift = 0; shift < 63 && !in.empty(); shift += 7) {
    const auto byte = std::to_integer<uint64_t>(in.front());
    in = in.subspan(1);
    value |= (byte & 0x7f) << shift;
    if (byte < 0x80)
      return true;
  }
  return false;
}

} // namespace lah::wire
