#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lah {

using ByteView = std::span<const std::byte>;
using MutableByteView = std::span<std::byte>;
using Buffer = std::vector<std::byte>;

inline ByteView as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}

template <size_t N> ByteView as_bytes(const std::array<uint8_t, N>& data) {
  return std::as_bytes(std::span(data));
}

inline std::string_view as_text(ByteView data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

inline const uint8_t* u8(ByteView data) {
  return reinterpret_cast<const uint8_t*>(data.data());
}
inline uint8_t* u8(MutableByteView data) {
  return reinterpret_cast<uint8_t*>(data.data());
}

inline void append(Buffer& out, ByteView data) {
  out.insert(out.end(), data.begin(), data.end());
}

// Tensors start on these boundaries in every buffer, on the wire and in the slab.
inline constexpr size_t kTensorAlign = 64;
constexpr size_t align_up(size_t value) {
  return (value + kTensorAlign - 1) & ~(kTensorAlign - 1);
}

std::string to_hex(ByteView data);

} // namespace lah
