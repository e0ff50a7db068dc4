// HELLO: learning the key of a peer known only by its address, over UDP on the port number of its
// TCP service. A DHT node answers HELLO on its own port too.
#pragma once

#include <condition_variable>

#include "net/net_thread.hpp"
#include "net/udp_socket.hpp"

namespace lah::net {

// Answers HELLO with the identity's signed reply, at most Limits::kHellosPerSecond.
class HelloResponder final : public Service {
public:
  static Result<std::unique_ptr<HelloResponder>> open(NetThread& thread,
                                                      const crypto::Identity& identity,
                                                      const Endpoint& bind,
                                                      std::string_view network_id);
  ~HelloResponder() override; // not on the network thread
  HelloResponder(const HelloResponder&) = delete;
  HelloResponder& operator=(const HelloResponder&) = delete;

  uint16_t port() const { return socket_.port(); }
  void on_ready(int fd, Time now) override;
  void on_timer(Time) override {}
  Time next_deadline() const override { return kNever; }

private:
  HelloResponder(NetThread& thread, const crypto::Identity& identity, UdpSocket socket,
                 std::string_view network_id)
      : thread_(thread), identity_(identity), socket_(std::move(socket)),
        cipher_(identity_, network_id, thread.rng()) {}

  NetThread& thread_;
  const crypto::Identity identity_;
  UdpSocket socket_;
  dht::SealedCipher cipher_;
  Time window_ = 0;
  size_t answered_in_window_ = 0;
};

// Asks one address for its signed key, from a throw-away identity and socket: three sendings within
// 750 ms, given up after dht::HelloExchange::kGiveUp.
class HelloQuery final : public Service {
public:
  static Result<std::unique_ptr<HelloQuery>> open(NetThread& thread, const Endpoint& peer,
                                                  std::string_view network_id);
  ~HelloQuery() override; // not on the network thread
  HelloQuery(const HelloQuery&) = delete;
  HelloQuery& operator=(const HelloQuery&) = delete;

  // Waits up to `timeout` for the end of the question; true if it has ended. From any thread.
  bool wait(Duration timeout);
  // After wait() returned true: the key, or nothing if nobody answered.
  std::optional<crypto::PublicKey> key() const { return key_; }

  void on_ready(int fd, Time now) override;
  void on_timer(Time now) override;
  Time next_deadline() const override { return exchange_.next_deadline(); }

private:
  HelloQuery(NetThread& thread, UdpSocket socket, std::string_view network_id);
  void finish(std::optional<crypto::PublicKey> key);
  void flush(const std::vector<dht::Datagram>& out) { socket_.send(out); }

  NetThread& thread_;
  const crypto::Identity identity_;
  UdpSocket socket_;
  dht::SealedCipher cipher_;
  dht::HelloExchange exchange_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool finished_ = false;
  std::optional<crypto::PublicKey> key_;
};

} // namespace lah::net
