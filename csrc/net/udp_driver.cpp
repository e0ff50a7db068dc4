#include "net/udp_driver.hpp"

namespace lah::net {

Result<std::unique_ptr<UdpDriver>> UdpDriver::open(NetThread& thread,
                                                   const crypto::Identity& identity,
                                                   const Endpoint& bind, dht::NodeConfig config) {
  Result<UdpSocket> socket = UdpSocket::open(bind);
  if (!socket)
    return socket.error();
  std::unique_ptr<UdpDriver> driver(new UdpDriver(thread, std::move(*socket)));
  thread.run_and_wait([&] {
    config.verified = &thread.verified();
    driver->core_ =
        std::make_unique<Core>(std::move(config), identity, thread.rng(), thread.agreements());
    thread.watch(driver->socket_.fd(), *driver);
    driver->on_timer(thread.clock().now()); // the way into the network is asked for at once
  });
  return driver;
}

UdpDriver::~UdpDriver() {
  if (core_ == nullptr)
    return;
  thread_.run_and_wait([this] {
    core_->node.abandon();
    thread_.remove(*this);
    core_.reset();
  });
}

void UdpDriver::post(Command command) {
  thread_.post([this, command = std::move(command)] { run(command); });
}

void UdpDriver::run_and_wait(const Command& command) {
  thread_.run_and_wait([&] { run(command); });
}

void UdpDriver::run(const Command& command) {
  const Time now = thread_.clock().now();
  core_->node.set_time(now, thread_.clock().wall_ms());
  command(*core_, now, core_->node.wall());
  flush();
}

void UdpDriver::on_ready(int, Time now) {
  const WallMs wall = thread_.clock().wall_ms();
  socket_.receive([&](const Endpoint& from, ByteView bytes) {
    core_->node.on_datagram(now, wall, from, bytes);
  });
  flush();
}

void UdpDriver::on_timer(Time now) {
  core_->node.on_timer(now, thread_.clock().wall_ms());
  flush();
}

void UdpDriver::flush() {
  const std::vector<dht::Datagram> datagrams = core_->node.take_datagrams();
  if (!datagrams.empty())
    socket_.send(datagrams);
  thread_.plan(*this);
}

} // namespace lah::net
