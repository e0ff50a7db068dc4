#include "net/udp_socket.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "net/address.hpp"
#include "net/system.hpp"

namespace lah::net {
namespace {

// Longer than any datagram we accept, so a cut one is recognised by its length.
constexpr size_t kSlot = Limits::kDatagramBytes + 1;
constexpr int kBufferBytes = 1 << 21; // a burst of stores from a server with thousands of experts

bool is_any(const Endpoint& endpoint) {
  const size_t from = endpoint.is_v4() ? 12 : 0;
  return std::all_of(endpoint.ip.begin() + static_cast<std::ptrdiff_t>(from), endpoint.ip.end(),
                     [](uint8_t byte) { return byte == 0; });
}

Error bind_error(const Endpoint& bind, int code) {
  if (code == EMFILE || code == ENFILE)
    return {ErrorCode::kOverloaded,
            "cannot open a UDP socket: " + std::string(std::strerror(code)) +
                "; see `ulimit -n` for how many this process may have"};
  return {ErrorCode::kInvalidArgument,
          "cannot listen on UDP " + bind.text() + ": " + std::strerror(code)};
}

} // namespace

Result<UdpSocket> UdpSocket::bind_family(const Endpoint& bind, bool v6, Calls calls) {
  int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
  if (fd < 0 && errno == EMFILE && raise_file_limit())
    fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
  if (fd < 0)
    return bind_error(bind, errno);
  UdpSocket opened(fd, v6, calls);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &kBufferBytes, sizeof(kBufferBytes));
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kBufferBytes, sizeof(kBufferBytes));
  const int off = 0;
  if (v6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) != 0)
    return bind_error(bind, errno);
  Endpoint wanted = bind;
  if (v6 && is_any(bind))
    wanted.ip = {};
  sockaddr_storage address{};
  socklen_t size = to_sockaddr(wanted, v6, address);
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return bind_error(bind, errno);
  opened.port_ = from_sockaddr(address).port;
  return opened;
}

Result<UdpSocket> UdpSocket::open(const Endpoint& bind, Calls calls) {
  Result<UdpSocket> both = bind_family(bind, true, calls);
  if (both || !bind.is_v4())
    return both;
  return bind_family(bind, false, calls); // no IPv6 here; and its error is the plainer one
}

UdpSocket::~UdpSocket() {
  if (fd_ >= 0)
    close(fd_);
}

UdpSocket::UdpSocket(UdpSocket&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), v6_(other.v6_), calls_(other.calls_), port_(other.port_) {}

void UdpSocket::receive(const OnDatagram& on_datagram) {
#ifdef __linux__
  if (calls_ == Calls::kBatched) {
    receive_batch(on_datagram);
    return;
  }
#endif
  receive_single(on_datagram);
}

size_t UdpSocket::send(const std::vector<dht::Datagram>& datagrams) {
#ifdef __linux__
  if (calls_ == Calls::kBatched)
    return send_batch(datagrams);
#endif
  size_t sent = 0;
  bool blocked = false;
  for (const dht::Datagram& datagram : datagrams) {
    sent += send_single(datagram, blocked);
    if (blocked)
      break;
  }
  return sent;
}

void UdpSocket::receive_single(const OnDatagram& on_datagram) {
  std::array<std::byte, kSlot> buffer;
  for (size_t i = 0; i < kReceiveBatch; ++i) {
    sockaddr_storage from{};
    socklen_t size = sizeof(from);
    const ssize_t got =
        recvfrom(fd_, buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (got >= 0)
      on_datagram(from_sockaddr(from), ByteView(buffer).first(static_cast<size_t>(got)));
    else if (errno != ECONNREFUSED && errno != EINTR) // an ICMP answer to an earlier datagram
      return;
  }
}

size_t UdpSocket::send_single(const dht::Datagram& datagram, bool& blocked) {
  if (!v6_ && !datagram.to.is_v4())
    return 0;
  sockaddr_storage to{};
  const socklen_t size = to_sockaddr(datagram.to, v6_, to);
  // Twice: the first try may report the ICMP answer to an earlier datagram instead of sending.
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (sendto(fd_, datagram.bytes.data(), datagram.bytes.size(), 0,
               reinterpret_cast<sockaddr*>(&to), size) >= 0)
      return 1;
    blocked = errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS;
    if (errno != ECONNREFUSED && errno != EINTR)
      return 0;
  }
  return 0;
}

#ifdef __linux__

void UdpSocket::receive_batch(const OnDatagram& on_datagram) {
  static constexpr size_t kBatch = 32;
  std::array<std::array<std::byte, kSlot>, kBatch> buffers;
  std::array<sockaddr_storage, kBatch> from;
  std::array<iovec, kBatch> parts;
  std::array<mmsghdr, kBatch> messages{};
  for (size_t done = 0; done < kReceiveBatch;) {
    for (size_t i = 0; i < kBatch; ++i) {
      parts[i] = {buffers[i].data(), kSlot};
      messages[i].msg_hdr = {&from[i], sizeof(from[i]), &parts[i], 1, nullptr, 0, 0};
    }
    const int got = recvmmsg(fd_, messages.data(), kBatch, MSG_DONTWAIT, nullptr);
    if (got < 0 && (errno == ECONNREFUSED || errno == EINTR)) {
      ++done;
      continue;
    }
    if (got <= 0)
      return;
    for (size_t i = 0; i < static_cast<size_t>(got); ++i)
      on_datagram(from_sockaddr(from[i]), ByteView(buffers[i]).first(messages[i].msg_len));
    done += static_cast<size_t>(got);
    if (static_cast<size_t>(got) < kBatch)
      return;
  }
}

size_t UdpSocket::send_batch(const std::vector<dht::Datagram>& datagrams) {
  static constexpr size_t kBatch = 32;
  std::array<sockaddr_storage, kBatch> to;
  std::array<iovec, kBatch> parts;
  std::array<mmsghdr, kBatch> messages{};
  size_t sent = 0;
  for (size_t at = 0; at < datagrams.size();) {
    const size_t count = std::min(kBatch, datagrams.size() - at);
    for (size_t i = 0; i < count; ++i) {
      const dht::Datagram& datagram = datagrams[at + i];
      const socklen_t size = to_sockaddr(datagram.to, v6_, to[i]);
      parts[i] = {const_cast<std::byte*>(datagram.bytes.data()), datagram.bytes.size()};
      messages[i].msg_hdr = {&to[i], size, &parts[i], 1, nullptr, 0, 0};
    }
    const int taken = sendmmsg(fd_, messages.data(), static_cast<unsigned>(count), MSG_DONTWAIT);
    if (taken > 0) {
      sent += static_cast<size_t>(taken);
      at += static_cast<size_t>(taken);
      continue;
    }
    bool blocked = false; // the first one is the trouble: send it alone, or go on without it
    sent += send_single(datagrams[at++], blocked);
    if (blocked)
      break;
  }
  return sent;
}

#endif

} // namespace lah::net
