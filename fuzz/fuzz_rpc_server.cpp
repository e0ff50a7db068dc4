// Any sequence of frames into rpc::Server: no crash, no memory kept beyond what was admitted.
#include <cstdlib>

#include "../tests/cpp/memory_link.hpp"

using namespace lah;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  rpc::MemoryLink link;
  rpc::TestHandler handler;
  rpc::PlainAllocator allocator;
  allocator.limit = size_t{8} << 20;
  rpc::Server server(link, handler, allocator, 1);
  ByteView rest = std::as_bytes(std::span(data, size));
  Time now = kSecond;
  while (rest.size() >= 4) { // [header length][chunk length, in 256 bytes][peer][time step] header
    const size_t header = std::min<size_t>(std::to_integer<size_t>(rest[0]), rest.size() - 4);
    auto owner = std::make_unique<rpc::OwnedBytes>();
    owner->bytes.resize(std::to_integer<size_t>(rest[1]) * 256);
    rpc::ReceivedChunk chunk{owner->bytes, nullptr};
    chunk.owner = std::move(owner);
    now += std::to_integer<int64_t>(rest[3]) * 100 * kMillisecond;
    server.on_frames(now, std::to_integer<uint64_t>(rest[2]) & 3, rest.subspan(4, header),
                     std::move(chunk));
    server.on_timer(now);
    rest = rest.subspan(4 + header);
  }
  for (rpc::PeerId peer = 0; peer < 4; ++peer)
    server.forget(peer);
  handler.calls.clear();
  if (allocator.alive() != 0)
    std::abort();
  return 0;
}
