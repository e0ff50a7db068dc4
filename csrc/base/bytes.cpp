#include "base/bytes.hpp"

namespace lah {

std::string to_hex(ByteView data) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(data.size() * 2);
  for (std::byte value : data) {
    text.push_back(kDigits[std::to_integer<unsigned>(value) >> 4]);
    text.push_back(kDigits[std::to_integer<unsigned>(value) & 15]);
  }
  return text;
}

} // namespace lah
