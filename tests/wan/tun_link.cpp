// A wide-area network on one machine: N network namespaces, a TUN device in each, and this process
// carrying IPv4 packets between them. Every direction of every pair has a delay, a rate with a
// bounded queue in front of it, and a loss rate. Namespaces, devices and packets end with the
// process.
//
//   lah_tun_link NODES MTU [FROM:TO:DELAY_MS:RATE_MBIT:LOSS:QUEUE_MS]...
//
// Node i has address 10.98.0.(i+1)/24. Pairs not named are not connected; rate 0 is unlimited.
// Prints "READY PID FD...", where /proc/PID/fd/FD is the namespace of each node. Reads lines from
// its input until that ends: a pair as above changes it, "stats" prints one line a pair.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace {

using Nanoseconds = int64_t;
constexpr Nanoseconds kNever = INT64_MAX;
constexpr int kPacketsPerTurn = 64; // then the other nodes and what is due have their turn
constexpr size_t kMostNodes = 32;

// In front of every packet (VIRTIO 1.1, 5.1.6; the kernel's own header of it is not C++).
struct VirtioHeader {
  uint8_t flags, gso_type;
  uint16_t headers, gso_size, checksum_start, checksum_offset;
};
constexpr size_t kHeader = sizeof(VirtioHeader);
static_assert(kHeader == 10);
constexpr size_t kLargestPacket = 65536 + kHeader;

Nanoseconds now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "lah_tun_link: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

struct Packet {
  Nanoseconds due = 0;
  std::vector<char> bytes; // VirtioHeader, then IP
};

// One direction of a pair: a queue, a wire of some rate, then the way.
struct Pair {
  bool connected = false;
  Nanoseconds delay = 0;
  double bytes_per_second = 0; // 0: unlimited
  double loss = 0;
  Nanoseconds longest_queue = 0;

  Nanoseconds wire_free = 0; // when the last accepted packet will have left the queue
  std::deque<Packet> under_way;
  uint64_t packets = 0, bytes = 0, lost = 0, overflowed = 0;
};

// A header with `gso_size` stands for several packets of the wire, which travel as one here.
struct Wire {
  uint64_t packets = 1;
  uint64_t bytes = 0;
};

Wire on_the_wire(const std::vector<char>& data) {
  VirtioHeader header{};
  std::memcpy(&header, data.data(), sizeof(header));
  const auto* ip = reinterpret_cast<const unsigned char*>(data.data() + kHeader);
  const size_t size = data.size() - kHeader;
  if (header.gso_type == 0 || header.gso_size == 0)
    return {1, size};
  const size_t ip_header = size_t{ip[0] & 15u} * 4;
  const size_t headers = ip_header + (size_t{ip[ip_header + 12]} >> 4) * 4;
  const uint64_t packets = (size - headers + header.gso_size - 1) / header.gso_size;
  return {packets, size + (packets - 1) * headers};
}

class Forwarder {
public:
  Forwarder(size_t nodes, int mtu) : pairs_(nodes, std::vector<Pair>(nodes)), mtu_(mtu) {}

  bool set_pair(const std::string& text) {
    size_t from = 0, to = 0;
    double delay_ms = 0, mbit = 0, loss = 0, queue_ms = 0;
    char end = 0;
    if (std::sscanf(text.c_str(), "%zu:%zu:%lf:%lf:%lf:%lf%c", &from, &to, &delay_ms, &mbit, &loss,
                    &queue_ms, &end) != 6 ||
        from >= pairs_.size() || to >= pairs_.size())
      return false;
    Pair& pair = pairs_[from][to];
    pair.connected = true;
    pair.delay = static_cast<Nanoseconds>(delay_ms * 1e6);
    pair.bytes_per_second = mbit * 1e6 / 8;
    pair.loss = loss;
    pair.longest_queue = static_cast<Nanoseconds>(queue_ms * 1e6);
    segments_ = segments_ && loss == 0;
    return true;
  }

  void open();
  void run();

private:
  void open_node(size_t node);
  void receive(size_t node);
  void accept(Pair& pair, std::vector<char>&& bytes);
  Nanoseconds deliver();
  bool read_commands();
  void print_stats() const;

  std::vector<std::vector<Pair>> pairs_; // [from][to]
  std::vector<int> tuns_, namespaces_;
  int mtu_;
  // Lossless links carry what TCP would send in a row as one packet, so that a gigabit of 1500-byte
  // packets costs little; where packets are lost, each travels by itself.
  bool segments_ = true;
  std::mt19937_64 random_{1};
  std::string input_;
};

void set_flags_up(int control, const char* device) {
  ifreq request{};
  std::strncpy(request.ifr_name, device, IFNAMSIZ - 1);
  if (ioctl(control, SIOCGIFFLAGS, &request) < 0)
    die(std::string("SIOCGIFFLAGS ") + device);
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP | IFF_RUNNING);
  if (ioctl(control, SIOCSIFFLAGS, &request) < 0)
    die(std::string("SIOCSIFFLAGS ") + device);
}

void set_address(int control, const char* device, unsigned long what, const std::string& text) {
  ifreq request{};
  std::strncpy(request.ifr_name, device, IFNAMSIZ - 1);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  inet_pton(AF_INET, text.c_str(), &address.sin_addr);
  std::memcpy(&request.ifr_addr, &address, sizeof(address));
  if (ioctl(control, what, &request) < 0)
    die("address " + text);
}

// The buffers that Linux ships with, whatever this machine was tuned to. Congestion control stays
// what it is: few namespaces may choose it.
void use_stock_buffers() {
  const std::string folder = "/proc/sys/net/ipv4/";
  std::ofstream(folder + "tcp_rmem") << "4096 131072 6291456\n";
  std::ofstream(folder + "tcp_wmem") << "4096 16384 4194304\n";
}

void Forwarder::open() {
  if (geteuid() != 0) { // a user namespace makes anybody root of what it makes itself
    const auto user = geteuid();
    if (unshare(CLONE_NEWUSER) != 0)
      die("user namespace");
    std::ofstream("/proc/self/setgroups") << "deny";
    std::ofstream("/proc/self/uid_map") << "0 " << user << " 1";
    std::ofstream("/proc/self/gid_map") << "0 " << getegid() << " 1";
  }
  for (size_t node = 0; node < pairs_.size(); ++node)
    open_node(node);
  std::printf("READY %d", getpid());
  for (int fd : namespaces_)
    std::printf(" %d", fd);
  std::puts("");
  std::fflush(stdout);
}

void Forwarder::open_node(size_t node) {
  if (unshare(CLONE_NEWNET) != 0)
    die("network namespace");
  namespaces_.push_back(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  const int tun = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (tun < 0)
    die("/dev/net/tun");
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
  std::strcpy(request.ifr_name, "wan0");
  if (ioctl(tun, TUNSETIFF, &request) < 0)
    die("TUNSETIFF");
  if (segments_ && ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0)
    die("TUNSETOFFLOAD");
  const int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  request = {};
  std::strcpy(request.ifr_name, "wan0");
  request.ifr_mtu = mtu_;
  if (ioctl(control, SIOCSIFMTU, &request) < 0)
    die("MTU " + std::to_string(mtu_));
  request.ifr_qlen = 10'000; // the queue that loses packets is the emulated one
  if (ioctl(control, SIOCSIFTXQLEN, &request) < 0)
    die("queue length");
  set_address(control, "wan0", SIOCSIFADDR, "10.98.0." + std::to_string(node + 1));
  set_address(control, "wan0", SIOCSIFNETMASK, "255.255.255.0");
  set_flags_up(control, "wan0");
  set_flags_up(control, "lo");
  close(control);
  use_stock_buffers();
  tuns_.push_back(tun);
}

void Forwarder::accept(Pair& pair, std::vector<char>&& bytes) {
  if (!pair.connected)
    return;
  const Wire wire = on_the_wire(bytes);
  if (std::uniform_real_distribution<>()(random_) < pair.loss) {
    pair.lost += wire.packets;
    return;
  }
  const Nanoseconds at = now();
  Nanoseconds leaves = at;
  if (pair.bytes_per_second > 0) {
    const Nanoseconds begins = std::max(at, pair.wire_free);
    if (begins - at > pair.longest_queue) {
      pair.overflowed += wire.packets;
      return;
    }
    leaves = begins + static_cast<Nanoseconds>(static_cast<double>(wire.bytes) * 1e9 /
                                               pair.bytes_per_second);
    pair.wire_free = leaves;
  }
  pair.packets += wire.packets;
  pair.bytes += wire.bytes;
  pair.under_way.push_back({leaves + pair.delay, std::move(bytes)});
}

void Forwarder::receive(size_t node) {
  std::array<char, kLargestPacket> buffer;
  for (int i = 0; i < kPacketsPerTurn; ++i) {
    const ssize_t size = read(tuns_[node], buffer.data(), buffer.size());
    if (size < 0)
      return;
    if (static_cast<size_t>(size) < kHeader + 20 || buffer[kHeader] >> 4 != 4)
      continue; // not IPv4
    const size_t to = static_cast<unsigned char>(buffer[kHeader + 19]) - 1u;
    if (to < pairs_.size())
      accept(pairs_[node][to], {buffer.begin(), buffer.begin() + size});
  }
}

// Hands over what is due; returns when the next packet will be.
Nanoseconds Forwarder::deliver() {
  Nanoseconds next = kNever;
  for (auto& from : pairs_) {
    for (size_t to = 0; to < from.size(); ++to) {
      auto& under_way = from[to].under_way;
      while (!under_way.empty() && under_way.front().due <= now()) {
        const auto& bytes = under_way.front().bytes;
        if (write(tuns_[to], bytes.data(), bytes.size()) < 0)
          ++from[to].overflowed;
        under_way.pop_front();
      }
      if (!under_way.empty())
        next = std::min(next, under_way.front().due);
    }
  }
  return next;
}

bool Forwarder::read_commands() {
  std::array<char, 4096> buffer;
  const ssize_t size = read(STDIN_FILENO, buffer.data(), buffer.size());
  if (size <= 0)
    return false;
  input_.append(buffer.data(), static_cast<size_t>(size));
  for (size_t end = input_.find('\n'); end != std::string::npos; end = input_.find('\n')) {
    const std::string line = input_.substr(0, end);
    input_.erase(0, end + 1);
    if (line == "stats")
      print_stats();
    else if (!set_pair(line))
      std::fprintf(stderr, "lah_tun_link: no pair: %s\n", line.c_str());
  }
  return true;
}

void Forwarder::print_stats() const {
  std::ostringstream out;
  for (size_t from = 0; from < pairs_.size(); ++from)
    for (size_t to = 0; to < pairs_.size(); ++to)
      if (const Pair& pair = pairs_[from][to]; pair.connected)
        out << from << ' ' << to << ' ' << pair.packets << ' ' << pair.bytes << ' ' << pair.lost
            << ' ' << pair.overflowed << '\n';
  std::cout << out.str() << '\n' << std::flush;
}

void Forwarder::run() {
  std::vector<pollfd> polled{{STDIN_FILENO, POLLIN, 0}};
  for (int fd : tuns_)
    polled.push_back({fd, POLLIN, 0});
  while (true) {
    const Nanoseconds next = deliver();
    timespec timeout{};
    if (next != kNever) {
      const Nanoseconds left = std::max<Nanoseconds>(next - now(), 0);
      timeout = {left / 1'000'000'000, left % 1'000'000'000};
    }
    if (ppoll(polled.data(), polled.size(), next == kNever ? nullptr : &timeout, nullptr) < 0)
      continue;
    if (polled[0].revents != 0 && !read_commands())
      return;
    for (size_t node = 0; node < tuns_.size(); ++node)
      if (polled[node + 1].revents != 0)
        receive(node);
  }
}

} // namespace

int main(int argc, char** argv) {
  const size_t nodes = argc > 2 ? std::strtoul(argv[1], nullptr, 10) : 0;
  const int mtu = argc > 2 ? std::atoi(argv[2]) : 0;
  if (nodes < 2 || nodes > kMostNodes || mtu < 576 || mtu > 65535) {
    std::fprintf(stderr,
                 "usage: lah_tun_link NODES MTU [FROM:TO:DELAY_MS:RATE_MBIT:LOSS:QUEUE_MS]...\n");
    return 2;
  }
  Forwarder forwarder(nodes, mtu);
  for (int i = 3; i < argc; ++i)
    if (!forwarder.set_pair(argv[i])) {
      std::fprintf(stderr, "lah_tun_link: no pair: %s\n", argv[i]);
      return 2;
    }
  forwarder.open();
  forwarder.run();
  return 0;
}
