#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "net/poller.hpp"

namespace lah::net {
namespace {

class PortablePoller final : public Poller {
public:
  explicit PortablePoller(std::array<int, 2> pipe) : pipe_(pipe) {
    polled_.push_back({pipe_[0], POLLIN, 0});
  }
  PortablePoller(const PortablePoller&) = delete;
  PortablePoller& operator=(const PortablePoller&) = delete;
  ~PortablePoller() override {
    close(pipe_[0]);
    close(pipe_[1]);
  }

  void watch(int fd) override { polled_.push_back({fd, POLLIN, 0}); }
  void unwatch(int fd) override {
    std::erase_if(polled_, [fd](const pollfd& entry) { return entry.fd == fd; });
  }

  void wait(Duration timeout, std::vector<int>& ready) override {
    int wait_ms = -1;
    if (timeout != kNever)
      wait_ms = static_cast<int>(
          std::clamp<Duration>((timeout + kMillisecond - 1) / kMillisecond, 0, 3'600'000));
    if (poll(polled_.data(), static_cast<nfds_t>(polled_.size()), wait_ms) <= 0)
      return;
    if ((polled_[0].revents & POLLIN) != 0)
      drain();
    for (size_t i = 1; i < polled_.size(); ++i)
      if (polled_[i].revents != 0)
        ready.push_back(polled_[i].fd);
  }

  void wake() override {
    const char byte = 0; // a full pipe already holds a wake-up
    [[maybe_unused]] const ssize_t written = write(pipe_[1], &byte, 1);
  }

private:
  void drain() {
    std::array<char, 256> sink{};
    while (read(pipe_[0], sink.data(), sink.size()) > 0) {
    }
  }

  std::array<int, 2> pipe_;
  std::vector<pollfd> polled_;
};

} // namespace

Result<std::unique_ptr<Poller>> make_portable_poller() {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0)
    return Error{ErrorCode::kInvalidArgument, std::string("pipe: ") + std::strerror(errno)};
  for (int fd : ends) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  return std::unique_ptr<Poller>(std::make_unique<PortablePoller>(ends));
}

#ifndef __linux__
Result<std::unique_ptr<Poller>> make_poller() {
  return make_portable_poller();
}
#endif

} // namespace lah::net
