// What the writer and the reader of messages agree on.
#pragma once

#include "dht/message.hpp"

namespace lah::dht {

inline constexpr uint64_t kReplyBit = 0x40;
inline constexpr uint64_t kClientModeFlag = 1;
inline constexpr size_t kHeaderFields = 7;
inline constexpr size_t kArrayMax = 64; // elements of any list in a message

} // namespace lah::dht
