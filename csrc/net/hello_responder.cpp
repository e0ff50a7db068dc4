#include "net/hello_responder.hpp"

#include <chrono>

namespace lah::net {
namespace {
crypto::Identity throw_away_identity() {
  SystemRng rng;
  return crypto::Identity::generate(rng);
}
} // namespace

// --- HelloResponder ------------------------------------------------------------------------------

Result<std::unique_ptr<HelloResponder>> HelloResponder::open(NetThread& thread,
                                                             const crypto::Identity& identity,
                                                             const Endpoint& bind,
                                                             std::string_view network_id) {
  Result<UdpSocket> socket = UdpSocket::open(bind);
  if (!socket)
    return socket.error();
  std::unique_ptr<HelloResponder> responder(
      new HelloResponder(thread, identity, std::move(*socket), network_id));
  thread.run_and_wait([&] {
    thread.add(*responder);
    thread.watch(responder->socket_.fd(), *responder);
  });
  return responder;
}

HelloResponder::~HelloResponder() {
  thread_.run_and_wait([this] { thread_.remove(*this); });
}

void HelloResponder::on_ready(int, Time now) {
  if (now - window_ >= kSecond) {
    window_ = now;
    answered_in_window_ = 0;
  }
  std::vector<dht::Datagram> out;
  socket_.receive([&](const Endpoint& from, ByteView bytes) {
    const Result<crypto::Packet> packet = crypto::parse_packet(bytes);
    if (packet && packet->kind == crypto::PacketKind::kHello &&
        answered_in_window_++ < Limits::kHellosPerSecond)
      out.push_back({from, cipher_.hello_reply(*packet)});
  });
  if (!out.empty())
    socket_.send(out);
}

// --- HelloQuery ----------------------------------------------------------------------------------

HelloQuery::HelloQuery(NetThread& thread, UdpSocket socket, std::string_view network_id)
    : thread_(thread), identity_(throw_away_identity()), socket_(std::move(socket)),
      cipher_(identity_, network_id, thread.rng()), exchange_(cipher_) {}

Result<std::unique_ptr<HelloQuery>> HelloQuery::open(NetThread& thread, const Endpoint& peer,
                                                     std::string_view network_id) {
  Endpoint any = Endpoint::v4(0, 0);
  if (!peer.is_v4())
    any.ip = {};
  Result<UdpSocket> socket = UdpSocket::open(any);
  if (!socket)
    return socket.error();
  std::unique_ptr<HelloQuery> query(new HelloQuery(thread, std::move(*socket), network_id));
  thread.run_and_wait([&thread, &peer, &query = *query] {
    thread.add(query);
    thread.watch(query.socket_.fd(), query);
    std::vector<dht::Datagram> out;
    query.exchange_.ask(
        thread.clock().now(), peer,
        [&query](const Endpoint&, const auto& answer) {
          query.finish(answer ? std::optional(answer->key) : std::nullopt);
        },
        out);
    query.flush(out);
  });
  return query;
}

HelloQuery::~HelloQuery() {
  thread_.run_and_wait([this] { thread_.remove(*this); });
}

void HelloQuery::finish(std::optional<crypto::PublicKey> key) {
  const std::lock_guard lock(mutex_);
  key_ = key;
  finished_ = true;
  changed_.notify_all();
}

bool HelloQuery::wait(Duration timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::nanoseconds(timeout), [this] { return finished_; });
  return finished_;
}

void HelloQuery::on_ready(int, Time now) {
  socket_.receive([&](const Endpoint& from, ByteView bytes) {
    const Result<crypto::Packet> packet = crypto::parse_packet(bytes);
    if (packet && packet->kind == crypto::PacketKind::kHelloReply)
      exchange_.on_reply(now, from, *packet);
  });
}

void HelloQuery::on_timer(Time now) {
  std::vector<dht::Datagram> out;
  exchange_.on_timer(now, out);
  flush(out);
}

} // namespace lah::net
