// A hostile server: any sequence of frames into rpc::Client while calls are open. Every call ends
// exactly once, and nothing is delivered beyond what its result announced.
#include <algorithm>
#include <cstdlib>

#include "../tests/cpp/memory_link.hpp"

using namespace lah;

namespace {

struct Sink final : rpc::ReplySink {
  uint64_t announced = 0;
  size_t ended = 0;

  bool on_result(const rpc::ResultMessage& result) override {
    announced = result.total_bytes;
    return result.tensors.size() <= 2;
  }
  void on_bytes(uint64_t offset, ByteView bytes) override {
    if (ended > 0 || offset + bytes.size() > announced)
      std::abort();
  }
  void on_done(const rpc::Outcome&) override {
    if (++ended > 1)
      std::abort();
  }
};

constexpr rpc::PeerId kPeer = 1;

// The request id of an open call or ping, as a server knows it, put where a header has its own.
void take_id(const rpc::MemoryLink& link, size_t which, Buffer& header) {
  constexpr size_t kAt = 5;
  constexpr size_t kSize = 16;
  if (link.queue.empty() || header.size() < kAt + kSize)
    return;
  const Buffer& sent = link.queue[which % link.queue.size()].header;
  if (sent.size() >= kAt + kSize)
    std::copy_n(sent.begin() + kAt, kSize, header.begin() + kAt);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  rpc::MemoryLink link;
  SeededRng rng(1);
  rpc::Client client(link, rng, {}, [](rpc::PeerId, bool) {});
  std::array<Sink, 3> sinks;
  Time now = kSecond;
  const Buffer input(64);
  for (Sink& sink : sinks) {
    rpc::OutgoingCall call;
    call.header.uid = "e";
    call.header.method = &sink == &sinks[0] ? rpc::Method::kBackward : rpc::Method::kForward;
    call.header.tensors = {{DType::kFloat32, rpc::Codec::kRaw, {1, 16}, input.size()}};
    call.tensors = {input};
    call.deadline = now + 20 * kSecond;
    client.start(now, kPeer, std::move(call), sink);
  }
  ByteView rest = std::as_bytes(std::span(data, size));
  while (rest.size() >= 4) { // [header length][chunk length, in 64 bytes][whose id][time step]
    const size_t length = std::min<size_t>(std::to_integer<size_t>(rest[0]), rest.size() - 4);
    const ByteView given = rest.subspan(4, length);
    Buffer header(given.begin(), given.end());
    const auto whose = std::to_integer<size_t>(rest[2]);
    if (whose < 128)
      take_id(link, whose, header);
    const Buffer chunk(std::to_integer<size_t>(rest[1]) * 64);
    now += std::to_integer<int64_t>(rest[3]) * 50 * kMillisecond;
    client.on_frames(now, kPeer + (whose == 255 ? 1 : 0), header, chunk);
    client.on_timer(now);
    rest = rest.subspan(4 + length);
    while (link.queue.size() > 64) // a server need not listen
      link.queue.pop_front();
  }
  now += 60 * kSecond;
  client.on_timer(now);
  client.fail_all(now, {ErrorCode::kShuttingDown, "the end"});
  for (const Sink& sink : sinks)
    if (sink.ended != 1)
      std::abort();
  return 0;
}
