#include "net/call_client.hpp"

#include <algorithm>

namespace lah::net {
namespace {
constexpr int kStripeHighWaterMark = 2; // what waits at one stripe could leave by another
} // namespace

CallClient::CallClient(NetThread& thread, ZmqContext& zmq, crypto::Identity identity)
    : thread_(thread), zmq_(zmq), identity_(std::move(identity)),
      client_(*this, thread.rng(), {},
              [this](rpc::PeerId peer, bool up) {
                const std::lock_guard lock(mutex_);
                if (up)
                  down_.erase(peer);
                else
                  down_.insert(peer);
              }),
      calls_(client_, thread.rng(), {}), probes_(thread, *this) {
  thread_.run_and_wait([this] { thread_.add(*this); });
}

CallClient::~CallClient() {
  thread_.run_and_wait([this] {
    client_.fail_all(thread_.clock().now(), {ErrorCode::kShuttingDown, "the client was closed"});
    thread_.remove(*this);
    connections_.clear();
    closing_.clear();
    groups_.clear();
  });
}

rpc::PeerId CallClient::connect(const Endpoint& address, std::optional<crypto::PublicKey> key) {
  const std::lock_guard lock(mutex_);
  const Address wanted{address, key};
  const auto found = peers_.find(wanted);
  if (found != peers_.end())
    return found->second;
  addresses_.push_back(wanted);
  return peers_[wanted] = addresses_.size();
}

CallClient::Address CallClient::address_of(rpc::PeerId peer) const {
  const std::lock_guard lock(mutex_);
  return addresses_[peer - 1];
}

CallClient::Connection* CallClient::open(rpc::PeerId peer) {
  if (const auto found = connections_.find(peer); found != connections_.end())
    return &found->second;
  const Address address = address_of(rpc::first_connection(peer));
  try {
    Connection connection;
    connection.socket = zmq::socket_t(zmq_.get(), zmq::socket_type::dealer);
    set_common_options(connection.socket);
    connection.socket.set(zmq::sockopt::immediate, true);
    if (peer != rpc::first_connection(peer))
      connection.socket.set(zmq::sockopt::sndhwm, kStripeHighWaterMark);
    if (address.key) {
      const auto server = crypto::exchange_key(*address.key);
      if (!server)
        return nullptr;
      set_curve_client(connection.socket, identity_, *server);
    }
    connection.handshake =
        std::make_unique<SocketMonitor>(zmq_, connection.socket, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
    connection.socket.connect("tcp://" + address.endpoint.text());
    for (const int fd : {descriptor(connection.socket), connection.handshake->fd()}) {
      descriptors_[fd] = peer;
      thread_.watch(fd, *this);
    }
    return &connections_.emplace(peer, std::move(connection)).first->second;
  } catch (const zmq::error_t&) { // out of descriptors: the call fails like one to a silent peer
    return nullptr;
  }
}

rpc::Sent CallClient::send(rpc::PeerId peer, ByteView header, const rpc::Chunk& chunk) {
  std::erase(released_, peer);
  Connection* connection = open(peer);
  if (connection == nullptr)
    return rpc::Sent::kWouldBlock;
  const rpc::Sent sent = net::send(connection->socket, {}, header, chunk);
  connection->blocked = sent != rpc::Sent::kAccepted;
  touched_.push_back(peer);
  return connection->blocked ? rpc::Sent::kWouldBlock : sent;
}

void CallClient::release(rpc::PeerId peer) {
  released_.push_back(peer); // its socket may be in use further up the stack
}

void CallClient::probe(rpc::PeerId peer) {
  if (probes_.start(thread_.clock().now(), peer, address_of(peer).endpoint))
    refused_.push_back(peer);
}

// The socket may be in use further up the stack.
void CallClient::reset(rpc::PeerId peer) {
  const auto found = connections_.find(peer);
  if (found == connections_.end())
    return;
  end_handshake(found->second);
  unwatch(descriptor(found->second.socket));
  closing_.push_back(connections_.extract(found));
}

void CallClient::close_released() {
  for (rpc::PeerId peer : std::exchange(released_, {}))
    close(peer);
  closing_.clear();
}

void CallClient::close(rpc::PeerId peer) {
  const auto found = connections_.find(peer);
  if (found == connections_.end())
    return;
  end_handshake(found->second);
  unwatch(descriptor(found->second.socket));
  connections_.erase(found);
}

void CallClient::unwatch(int fd) {
  thread_.unwatch(fd);
  descriptors_.erase(fd);
}

void CallClient::end_handshake(Connection& connection) {
  if (!connection.handshake)
    return;
  unwatch(connection.handshake->fd());
  connection.handshake.reset();
}

// libzmq gives up a connection that the server's access list refused: it takes a new one to try
// again.
bool CallClient::not_permitted(Time now, rpc::PeerId peer, Connection& connection) {
  if (!connection.handshake || !connection.handshake->next())
    return false;
  close(peer);
  client_.on_not_permitted(now, rpc::first_connection(peer));
  return true;
}

void CallClient::start(std::shared_ptr<CallGroup> group) {
  thread_.post([this, group = std::move(group)] {
    const Time now = thread_.clock().now();
    groups_.push_back(group);
    for (size_t i = 0; i < group->size(); ++i) {
      GroupedCall& grouped = group->call(i);
      group->id(i) = calls_.start(now, std::move(grouped.call), group->sink(i));
    }
    drain_touched(now);
  });
}

void CallClient::cancel(std::shared_ptr<CallGroup> group) {
  thread_.post([this, group = std::move(group)] {
    const Time now = thread_.clock().now();
    for (size_t i = 0; i < group->size(); ++i)
      calls_.cancel(now, group->id(i));
    drain_touched(now);
  });
}

void CallClient::ping(rpc::PeerId peer, Duration timeout, rpc::Client::PingDone done) {
  thread_.post([this, peer, timeout, done = std::move(done)] {
    const Time now = thread_.clock().now();
    client_.ping(now, peer, now + timeout, done);
    drain_touched(now);
  });
}

std::vector<rpc::PeerId> CallClient::down() const {
  const std::lock_guard lock(mutex_);
  return {down_.begin(), down_.end()};
}

rpc::ReplicaCalls::Counters CallClient::counters() {
  rpc::ReplicaCalls::Counters counters;
  thread_.run_and_wait([&] { counters = calls_.counters(); });
  return counters;
}

void CallClient::drain(Time now, rpc::PeerId peer, Connection& connection) {
  std::vector<std::unique_ptr<Frame>> frames;
  for (Turn turn; !turn.over();) {
    // One question for both directions: asking consumes the edge of either.
    const Ready can = ready(connection.socket);
    if (can.in && receive(connection.socket, frames, 2)) {
      turn.took(frames);
      end_handshake(connection);
      client_.on_frames(now, peer, frames[0]->bytes(),
                        frames.size() > 1 ? frames[1]->bytes() : ByteView{});
    } else if (can.out && connection.blocked) {
      connection.blocked = false;
      client_.on_writable(now, peer);
    } else {
      return;
    }
  }
  touched_.push_back(peer);
}

// Handling one socket may touch others (and itself): each is asked again until all are quiet, or
// its turn is over.
void CallClient::drain_touched(Time now) {
  for (int turn = 0; turn < 4 && !touched_.empty(); ++turn) {
    std::vector<rpc::PeerId> peers = std::exchange(touched_, {});
    std::sort(peers.begin(), peers.end());
    peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
    for (rpc::PeerId peer : peers)
      if (const auto found = connections_.find(peer);
          found != connections_.end() && !not_permitted(now, peer, found->second))
        drain(now, peer, found->second);
  }
  for (rpc::PeerId peer : std::exchange(refused_, {}))
    client_.on_refused(now, peer);
  close_released();
  drop_ended_groups();
}

void CallClient::drop_ended_groups() {
  std::erase_if(groups_, [](const auto& group) { return group->all_ended(); });
}

void CallClient::on_ready(int fd, Time now) {
  if (const auto found = descriptors_.find(fd); found != descriptors_.end())
    touched_.push_back(found->second);
  else if (const auto refused = probes_.take_refused(fd))
    refused_.push_back(*refused);
  drain_touched(now);
}

void CallClient::on_timer(Time now) {
  client_.on_timer(now);
  calls_.on_timer(now);
  probes_.expire(now);
  drain_touched(now);
}

Time CallClient::next_deadline() const {
  if (!touched_.empty())
    return 0; // unfinished turns come back at once
  return std::min({client_.next_deadline(), calls_.next_deadline(), probes_.next_deadline()});
}

} // namespace lah::net
