// A Link between one client and one server in one thread: frames wait in queues until the test
// delivers them.
#pragma once

#include <deque>
#include <map>

#include "rpc/client.hpp"
#include "rpc/server.hpp"

namespace lah::rpc {

struct OwnedBytes final : ReceivedChunk::Owner {
  Buffer bytes;
};

class MemoryLink final : public Link {
public:
  struct Message {
    PeerId peer;
    Buffer header;
    Buffer chunk;
  };

  Sent send(PeerId peer, ByteView header, const Chunk& chunk) override {
    if (gone)
      return Sent::kGone;
    if (queue.size() >= capacity)
      return Sent::kWouldBlock;
    largest_chunk = std::max(largest_chunk, chunk.bytes.size());
    queue.push_back(
        {peer, {header.begin(), header.end()}, {chunk.bytes.begin(), chunk.bytes.end()}});
    return Sent::kAccepted;
  }
  void release(PeerId) override { ++released; }
  void probe(PeerId) override { ++probes; }
  void reset(PeerId peer) override { resets.push_back(peer); }
  std::string_view caller(PeerId) const override { return key; }

  std::deque<Message> queue;
  size_t released = 0;
  size_t probes = 0;
  size_t capacity = SIZE_MAX;
  size_t largest_chunk = 0;
  bool gone = false;
  std::string key; // of every caller
  std::vector<PeerId> resets;
};

class PlainAllocator final : public ByteAllocator {
public:
  SharedBytes allocate(size_t size) override {
    if (size > limit)
      return nullptr;
    auto* bytes = static_cast<std::byte*>(std::aligned_alloc(kTensorAlign, align_up(size + 1)));
    ++*alive_;
    return {bytes, [alive = alive_](std::byte* returned) {
              std::free(returned);
              --*alive;
            }};
  }
  size_t alive() const { return *alive_; }
  size_t limit = SIZE_MAX;

private:
  std::shared_ptr<size_t> alive_ = std::make_shared<size_t>(0);
};

// Collects one result, tensor by tensor as one stream.
struct TestSink final : ReplySink {
  bool accept = true;
  Buffer stream;
  std::optional<Outcome> outcome;

  bool on_result(const ResultMessage& result) override {
    stream.resize(result.total_bytes);
    return accept;
  }
  void on_bytes(uint64_t offset, ByteView bytes) override {
    std::memcpy(stream.data() + offset, bytes.data(), bytes.size());
  }
  void on_done(const Outcome& done) override { outcome = done; }

  ErrorCode code() const { return outcome ? outcome->error.code : ErrorCode::kNone; }
};

// Admits everything for expert "echo", and keeps complete calls for the test to answer.
struct TestHandler final : CallHandler {
  std::deque<IncomingCall> calls;
  std::vector<CallKey> cancelled;

  Result<uint32_t> admit(const Call& call) override {
    if (call.uid != "echo")
      return Error{ErrorCode::kExpertNotFound, "no expert '" + call.uid + "'"};
    return 0u;
  }
  void submit(IncomingCall call) override { calls.push_back(std::move(call)); }
  void cancel(const CallKey& key) override { cancelled.push_back(key); }
  Result<std::string> describe(const std::string& uid) override {
    if (uid != "echo")
      return Error{ErrorCode::kExpertNotFound, "no expert"};
    return std::string("{\"expert\": \"echo\"}");
  }
};

inline TensorMeta bytes_meta(uint64_t size) {
  return {DType::kUInt8, Codec::kRaw, {size}, size};
}

inline Buffer pattern(size_t size, unsigned seed) {
  Buffer out(size);
  for (size_t i = 0; i < size; ++i)
    out[i] = static_cast<std::byte>((i * 31 + seed * 7 + (i >> 9)) & 255);
  return out;
}

// A client and a server joined by two memory links, and the steps that move frames between them.
struct Pair {
  explicit Pair(uint64_t boot_id = 1) { server.emplace(to_client, handler, allocator, boot_id); }

  OutgoingCall call(const std::vector<Buffer>& tensors, Time deadline) {
    OutgoingCall out;
    out.header.uid = "echo";
    out.deadline = deadline;
    out.keep = std::make_shared<int>(0);
    for (const Buffer& tensor : tensors) {
      out.header.tensors.push_back(bytes_meta(tensor.size()));
      out.tensors.emplace_back(tensor);
    }
    return out;
  }

  bool deliver_to_server() {
    if (to_server.queue.empty())
      return false;
    auto message = std::move(to_server.queue.front());
    to_server.queue.pop_front();
    auto owner = std::make_unique<OwnedBytes>();
    owner->bytes = std::move(message.chunk);
    ReceivedChunk chunk{owner->bytes, nullptr};
    chunk.owner = std::move(owner);
    server->on_frames(now, number_of(message.peer), message.header, std::move(chunk));
    client.on_writable(now, message.peer);
    return true;
  }

  bool deliver_to_client() {
    if (to_client.queue.empty())
      return false;
    const auto message = std::move(to_client.queue.front());
    to_client.queue.pop_front();
    if (message.peer == connection) // what an earlier connection still carried is lost
      client.on_frames(now, 1, message.header, message.chunk);
    for (const auto& [stripe, number] : stripes)
      if (message.peer == number)
        client.on_frames(now, stripe, message.header, message.chunk);
    server->on_writable(message.peer);
    return true;
  }

  void deliver_all() {
    bool moved = true;
    while (moved) {
      moved = deliver_to_server();
      moved = deliver_to_client() || moved;
    }
  }

  // How the server numbers a connection of the client.
  PeerId number_of(PeerId peer) {
    return peer == first_connection(peer) ? connection
                                          : stripes.try_emplace(peer, peer).first->second;
  }

  // Answers a complete call with its own tensors.
  void echo() {
    IncomingCall call = std::move(handler.calls.front());
    handler.calls.pop_front();
    OutgoingResult result;
    result.header.tensors = call.header.tensors;
    result.bytes = allocator.allocate(call.bytes.size());
    std::memcpy(result.bytes.get(), call.bytes.data(), call.bytes.size());
    server->reply(now, call.key, std::move(result));
  }

  // The connection breaks, everything on its way is lost, and a new one is made.
  void reconnect() {
    to_server.queue.clear();
    to_client.queue.clear();
    ++connection;
  }

  // The server dies with everything it knows, and another one takes its place.
  void restart(uint64_t boot_id) {
    reconnect();
    handler.calls.clear();
    server.emplace(to_client, handler, allocator, boot_id);
  }

  void advance(Duration duration) {
    now += duration;
    client.on_timer(now);
    server->on_timer(now);
  }

  Time now = kSecond;
  PeerId connection = 1;            // as the server numbers it; to the client the server is peer 1
  std::map<PeerId, PeerId> stripes; // the client's numbers and the server's
  SeededRng rng{7};
  MemoryLink to_server;
  MemoryLink to_client;
  TestHandler handler;
  PlainAllocator allocator;
  std::vector<std::pair<PeerId, bool>> events;
  Client client{
      to_server, rng, {}, [this](PeerId peer, bool up) { events.emplace_back(peer, up); }};
  std::optional<Server> server;
};

} // namespace lah::rpc
