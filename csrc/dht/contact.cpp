#include "dht/contact.hpp"

#include <algorithm>

namespace lah::dht {

Contact Contact::make(const PublicKey& key, const PuzzleNonce& puzzle, const Endpoint& endpoint) {
  return {key, puzzle, endpoint, node_id(key, puzzle)};
}

namespace {

size_t write_endpoint(const Endpoint& endpoint, std::byte* out) {
  const ByteView address = as_bytes(endpoint.ip).subspan(endpoint.is_v4() ? 12 : 0);
  std::memcpy(out, address.data(), address.size());
  out[address.size()] = static_cast<std::byte>(endpoint.port >> 8);
  out[address.size() + 1] = static_cast<std::byte>(endpoint.port & 0xff);
  return address.size() + 2;
}

} // namespace

Buffer encode_endpoint(const Endpoint& endpoint) {
  Buffer out(endpoint.is_v4() ? 6 : 18);
  write_endpoint(endpoint, out.data());
  return out;
}

Result<Endpoint> decode_endpoint(ByteView data) {
  if (data.size() != 6 && data.size() != 18)
    return Error{ErrorCode::kProtocol, "endpoint of a wrong length"};
  Endpoint endpoint;
  if (data.size() == 6)
    endpoint = Endpoint::v4(0, 0);
  const size_t address = data.size() - 2;
  std::memcpy(endpoint.ip.data() + endpoint.ip.size() - address, data.data(), address);
  endpoint.port = static_cast<uint16_t>(std::to_integer<unsigned>(data[address]) << 8 |
                                        std::to_integer<unsigned>(data[address + 1]));
  return endpoint;
}

Buffer encode_contact(const Contact& contact) {
  std::array<std::byte, kContactBytesMax> bytes;
  const size_t size = encode_contact(contact, bytes);
  return {bytes.data(), bytes.data() + size};
}

size_t encode_contact(const Contact& contact, std::span<std::byte, kContactBytesMax> out) {
  std::memcpy(out.data(), contact.key.data(), 32);
  std::memcpy(out.data() + 32, contact.puzzle.data(), 8);
  return 40 + write_endpoint(contact.endpoint, out.data() + 40);
}

Result<Contact> decode_contact(ByteView data) {
  if (data.size() < 40)
    return Error{ErrorCode::kProtocol, "contact of a wrong length"};
  const Result<Endpoint> endpoint = decode_endpoint(data.subspan(40));
  if (!endpoint)
    return endpoint.error();
  PublicKey key{};
  PuzzleNonce puzzle{};
  std::memcpy(key.data(), data.data(), key.size());
  std::memcpy(puzzle.data(), data.data() + key.size(), puzzle.size());
  return Contact::make(key, puzzle, *endpoint);
}

bool is_sendable(const Endpoint& endpoint) {
  if (endpoint.port == 0)
    return false;
  if (endpoint.is_v4())
    return endpoint.ip[12] != 0 && endpoint.ip[12] < 224;
  const bool unspecified =
      std::all_of(endpoint.ip.begin(), endpoint.ip.end(), [](uint8_t byte) { return byte == 0; });
  return !unspecified && endpoint.ip[0] != 0xff;
}

} // namespace lah::dht
