#include "net/zmq_context.hpp"

#include <cstdlib>

#include "base/limits.hpp"

namespace lah::net {
namespace {

constexpr int kIoThreads = 2;       // CURVE runs there
constexpr size_t kCopyBelow = 4096; // cheaper than counting a lent frame

void release_keeper(void*, void* hint) {
  const std::unique_ptr<std::shared_ptr<const void>> keeper(
      static_cast<std::shared_ptr<const void>*>(hint));
}

zmq::message_t chunk_message(const rpc::Chunk& chunk) {
  if (!chunk.keep || chunk.bytes.size() < kCopyBelow)
    return {chunk.bytes.data(), chunk.bytes.size()};
  auto keeper = std::make_unique<std::shared_ptr<const void>>(chunk.keep);
  // ZeroMQ takes a mutable pointer and never writes through it.
  zmq::message_t message(const_cast<std::byte*>(chunk.bytes.data()), chunk.bytes.size(),
                         release_keeper, keeper.get());
  keeper.release(); // release_keeper owns it now
  return message;
}

// glibc hands the memory of a chunk back to the system at every free, and each message pays for it
// anew in page faults, until it has seen a larger block freed: then it keeps blocks up to that size
// (mallopt(3), M_MMAP_THRESHOLD). Any tensor of 32 MiB does that; so does this one, which is never
// touched and costs nothing.
void keep_freed_chunks() {
  void* volatile block = std::malloc((size_t{32} << 20) - 4096);
  std::free(block);
}

} // namespace

ZmqContext::ZmqContext(NetThread& thread) : context_(kIoThreads), zap_(thread, context_) {
  keep_freed_chunks();
}

void set_common_options(zmq::socket_t& socket) {
  namespace opt = zmq::sockopt;
  socket.set(opt::maxmsgsize, static_cast<int64_t>(Limits::kMessageBytes));
  socket.set(opt::sndhwm, Limits::kSocketHighWaterMark);
  socket.set(opt::rcvhwm, Limits::kSocketHighWaterMark);
  socket.set(opt::backlog, Limits::kBacklog);
  socket.set(opt::handshake_ivl, 5'000);
  socket.set(opt::heartbeat_ivl, 10'000);
  socket.set(opt::heartbeat_timeout, 30'000);
  socket.set(opt::heartbeat_ttl, 60'000);
  socket.set(opt::connect_timeout, 5'000);
  socket.set(opt::reconnect_ivl, 200);
  socket.set(opt::reconnect_ivl_max, 2'000);
  socket.set(opt::linger, 0);
  socket.set(opt::ipv6, true);
}

void set_curve_server(zmq::socket_t& socket, const crypto::Identity& identity,
                      const std::string& zap_domain) {
  socket.set(zmq::sockopt::zap_domain, zap_domain);
  socket.set(zmq::sockopt::curve_server, true);
  socket.set(zmq::sockopt::curve_secretkey,
             zmq::const_buffer(identity.exchange_secret().data(), 32));
}

void set_curve_client(zmq::socket_t& socket, const crypto::Identity& identity,
                      const crypto::ExchangeKey& server) {
  socket.set(zmq::sockopt::curve_serverkey, zmq::const_buffer(server.data(), 32));
  socket.set(zmq::sockopt::curve_publickey,
             zmq::const_buffer(identity.exchange_public().data(), 32));
  socket.set(zmq::sockopt::curve_secretkey,
             zmq::const_buffer(identity.exchange_secret().data(), 32));
}

int descriptor(zmq::socket_t& socket) {
  return socket.get(zmq::sockopt::fd);
}

Ready ready(zmq::socket_t& socket) {
  const int events = socket.get(zmq::sockopt::events);
  return {(events & ZMQ_POLLIN) != 0, (events & ZMQ_POLLOUT) != 0};
}

std::string user_id(zmq::message_t& message) {
  const char* id = zmq_msg_gets(message.handle(), "User-Id");
  return id == nullptr ? std::string() : std::string(id);
}

bool receive(zmq::socket_t& socket, std::vector<std::unique_ptr<Frame>>& frames, size_t count) {
  frames.clear();
  bool more = true;
  while (more) {
    auto frame = std::make_unique<Frame>();
    const auto received = socket.recv(frame->message, zmq::recv_flags::dontwait);
    if (!received)
      return false;
    more = frame->message.more();
    if (frames.size() < count)
      frames.push_back(std::move(frame));
  }
  return true;
}

rpc::Sent send(zmq::socket_t& socket, std::string_view route, ByteView header,
               const rpc::Chunk& chunk) {
  const auto part = [&](zmq::message_t&& message, bool more) {
    const auto flags =
        zmq::send_flags::dontwait | (more ? zmq::send_flags::sndmore : zmq::send_flags::none);
    return socket.send(std::move(message), flags).has_value();
  };
  try {
    if (!route.empty() && !part({route.data(), route.size()}, true))
      return rpc::Sent::kWouldBlock;
    // The pipe was chosen by the first part, and takes the rest of the message whatever its
    // high-water mark.
    if (!part({header.data(), header.size()}, !chunk.bytes.empty()))
      return rpc::Sent::kWouldBlock;
    if (!chunk.bytes.empty())
      part(chunk_message(chunk), false);
    return rpc::Sent::kAccepted;
  } catch (const zmq::error_t&) { // EHOSTUNREACH: the peer of this route has left
    return rpc::Sent::kGone;
  }
}

} // namespace lah::net
