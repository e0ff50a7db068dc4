#pragma once

#include <functional>

#include "base/endpoint.hpp"
#include "dht/hello.hpp"

namespace lah::net {

// A bound UDP socket. IPv6 with IPv4 mapped into it where the system can, else IPv4 alone.
class UdpSocket {
public:
  enum class Calls : uint8_t {
    kBatched, // recvmmsg and sendmmsg where the system has them
    kSingle,  // recvfrom and sendto
  };

  // Port 0 picks a free one. "0.0.0.0" and "::" mean every address of both families. An error names
  // the address and the reason.
  static Result<UdpSocket> open(const Endpoint& bind, Calls calls = Calls::kBatched);
  ~UdpSocket();
  UdpSocket(UdpSocket&& other) noexcept;
  UdpSocket& operator=(UdpSocket&&) = delete;

  int fd() const { return fd_; }
  uint16_t port() const { return port_; }

  using OnDatagram = std::function<void(const Endpoint& from, ByteView bytes)>;
  // Hands over what has arrived, at most kReceiveBatch datagrams: the caller's poller comes back.
  void receive(const OnDatagram& on_datagram);
  // Sends what the system takes at once. The rest is dropped, as any router on the way might; the
  // number sent is returned.
  size_t send(const std::vector<dht::Datagram>& datagrams);

  static constexpr size_t kReceiveBatch = 64;

private:
  UdpSocket(int fd, bool v6, Calls calls) : fd_(fd), v6_(v6), calls_(calls) {}
  static Result<UdpSocket> bind_family(const Endpoint& bind, bool v6, Calls calls);
  void receive_single(const OnDatagram& on_datagram);
  size_t send_single(const dht::Datagram& datagram, bool& blocked);
#ifdef __linux__
  void receive_batch(const OnDatagram& on_datagram);
  size_t send_batch(const std::vector<dht::Datagram>& datagrams);
#endif

  int fd_;
  bool v6_;
  Calls calls_;
  uint16_t port_ = 0;
};

} // namespace lah::net
