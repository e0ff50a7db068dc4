#include "net/call_server.hpp"

namespace lah::net {
namespace {
// The callers may take this long to hang up, and then, in the background, the last answers to
// leave.
constexpr int kGoodbyeMs = 500;
} // namespace

CallServer::CallServer(NetThread& thread, ZmqContext& zmq, crypto::Identity identity,
                       batching::Batcher& batcher, batching::LocalCalls& answers,
                       ByteAllocator& allocator, uint64_t boot_id, AccessList access)
    : thread_(thread), zmq_(zmq), identity_(std::move(identity)), answers_(answers),
      server_(*this, batcher, allocator, boot_id), admission_(zmq, std::move(access)) {}

CallServer::~CallServer() {
  answers_.connect(nullptr);
  thread_.run_and_wait([this] { // everything posted before has run by then
    leaving_ = true;
    if (socket_)
      server_.say_goodbye();
    note_if_all_left();
  });
  {
    std::unique_lock lock(left_mutex_);
    left_.wait_for(lock, std::chrono::milliseconds(kGoodbyeMs), [this] { return all_left_; });
  }
  thread_.run_and_wait([this] {
    thread_.remove(*this);
    if (socket_) {
      admission_.close();
      socket_.set(zmq::sockopt::linger, kGoodbyeMs);
      socket_.close();
    }
  });
}

// The callers hang up first: when a connection ends, libzmq throws away what its caller has
// received and not read yet (a DEALER with ZMQ_IMMEDIATE does), and the goodbye, like the answers
// before it, would be read or lost by chance.
void CallServer::note_if_all_left() {
  if (!leaving_ || !connections_.empty())
    return;
  const std::lock_guard lock(left_mutex_);
  all_left_ = true;
  left_.notify_one();
}

Result<uint16_t> CallServer::listen(const Endpoint& address, bool encrypted) {
  Result<uint16_t> port = uint16_t{0};
  thread_.run_and_wait([&] {
    try {
      socket_ = zmq::socket_t(zmq_.get(), zmq::socket_type::router);
      set_common_options(socket_);
      socket_.set(zmq::sockopt::router_mandatory, true);
      admission_.open(socket_, identity_, encrypted);
      socket_.bind("tcp://" + address.text());
      const std::string bound = socket_.get(zmq::sockopt::last_endpoint);
      port = port_ = static_cast<uint16_t>(std::stoul(bound.substr(bound.rfind(':') + 1)));
      thread_.add(*this);
      thread_.watch(descriptor(socket_), *this);
      thread_.watch(admission_.fd(), *this);
      answers_.connect(this);
    } catch (const zmq::error_t& error) {
      admission_.close();
      socket_.close();
      port = Error{ErrorCode::kInvalidArgument,
                   "cannot listen on tcp " + address.text() + ": " + error.what()};
    }
  });
  return port;
}

rpc::Server::Counters CallServer::counters() {
  rpc::Server::Counters counters;
  thread_.run_and_wait([&] { counters = server_.counters(); });
  return counters;
}

Admission::Counters CallServer::admission() {
  Admission::Counters counters;
  thread_.run_and_wait([&] { counters = admission_.counters(); });
  return counters;
}

bool CallServer::deny(const crypto::ExchangeKey& key) {
  bool listed = false;
  thread_.run_and_wait([&] {
    listed = admission_.deny(key);
    const std::string user = to_hex(as_bytes(key));
    const auto denied = peers_if([&](const Sender& sender) { return sender.user == user; });
    for (rpc::PeerId peer : denied) {
      admission_.kick(thread_.clock().now(), connections_[peer].sender.fd);
      send(peer, rpc::encode(rpc::GoAway{}), {});
    }
    drop(denied);
  });
  return listed;
}

std::vector<rpc::PeerId>
CallServer::peers_if(const std::function<bool(const Sender&)>& condition) const {
  std::vector<rpc::PeerId> found;
  for (const auto& [peer, connection] : connections_)
    if (condition(connection.sender))
      found.push_back(peer);
  return found;
}

// Nothing of these peers is kept; what they send from now on comes from peers unknown.
void CallServer::drop(const std::vector<rpc::PeerId>& peers) {
  for (rpc::PeerId peer : peers) {
    server_.forget(peer);
    release(peer);
  }
}

void CallServer::drop_closed(Time now) {
  admission_.on_events(now, port_, [this](int fd) {
    drop(peers_if([fd](const Sender& sender) { return sender.fd == fd; }));
  });
}

void CallServer::reply(const rpc::CallKey& key, rpc::OutgoingResult result) {
  thread_.post([this, key, result = std::move(result)] {
    const Time now = thread_.clock().now();
    server_.reply(now, key, result);
    drain(now);
  });
}

void CallServer::fail(const rpc::CallKey& key, const Error& error) {
  thread_.post([this, key, error] {
    server_.fail(key, error);
    drain(thread_.clock().now());
  });
}

rpc::Sent CallServer::send(rpc::PeerId peer, ByteView header, const rpc::Chunk& chunk) {
  const auto found = connections_.find(peer);
  if (found == connections_.end())
    return rpc::Sent::kGone;
  const rpc::Sent sent = net::send(socket_, found->second.route, header, chunk);
  if (sent == rpc::Sent::kWouldBlock)
    blocked_.insert(peer);
  if (sent == rpc::Sent::kGone)
    release(peer);
  return sent;
}

void CallServer::release(rpc::PeerId peer) {
  const auto found = connections_.find(peer);
  if (found == connections_.end())
    return;
  peers_.erase(found->second.route);
  connections_.erase(found);
  blocked_.erase(peer);
  note_if_all_left();
}

std::string_view CallServer::caller(rpc::PeerId peer) const {
  const auto found = connections_.find(peer);
  return found == connections_.end() ? std::string_view() : found->second.sender.user;
}

std::optional<rpc::PeerId> CallServer::peer_of(Time now, ByteView route, Frame& header) {
  const std::string name(as_text(route));
  if (const auto known = peers_.find(name); known != peers_.end())
    return known->second;
  drop_closed(now);
  if (connections_.size() >= 2 * Limits::kConnections) // messages read after their connection's end
    drop(peers_if([this](const Sender& sender) { return !admission_.knows(sender.fd); }));
  Sender sender = sender_of(header);
  if (!admission_.permits(now, sender))
    return std::nullopt;
  const rpc::PeerId peer = next_peer_++;
  connections_[peer] = {name, std::move(sender)};
  peers_[name] = peer;
  return peer;
}

void CallServer::drain(Time now) {
  std::vector<std::unique_ptr<Frame>> frames;
  Turn turn;
  while (!turn.over() && ready(socket_).in) {
    if (!receive(socket_, frames, 3))
      break;
    turn.took(frames);
    if (frames.size() < 2)
      continue;
    rpc::ReceivedChunk chunk;
    if (frames.size() == 3) {
      chunk.bytes = frames[2]->bytes();
      chunk.owner = std::move(frames[2]);
    }
    const auto peer = peer_of(now, frames[0]->bytes(), *frames[1]);
    if (peer && leaving_)
      send(*peer, rpc::encode(rpc::GoAway{}), {});
    else if (peer)
      server_.on_frames(now, *peer, frames[1]->bytes(), std::move(chunk));
  }
  // ZeroMQ does not say which peer became writable: every blocked one tries again after each
  // wake-up, and soon by timer, since the question below may consume the edge that announces it.
  const auto blocked = std::exchange(blocked_, {});
  for (rpc::PeerId peer : blocked)
    server_.on_writable(peer);
  retry_at_ = ready(socket_).in ? now : blocked_.empty() ? kNever : now + kMillisecond;
}

void CallServer::on_ready(int fd, Time now) {
  if (fd == admission_.fd())
    drop_closed(now);
  else
    drain(now);
}

void CallServer::on_timer(Time now) {
  server_.on_timer(now);
  admission_.on_timer(now);
  drain(now);
}

Time CallServer::next_deadline() const {
  return std::min({retry_at_, server_.next_deadline(), admission_.next_deadline()});
}

} // namespace lah::net
