#ifdef __linux__

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "net/poller.hpp"

namespace lah::net {
namespace {

class EpollPoller final : public Poller {
public:
  EpollPoller(int epoll, int wake_fd) : epoll_(epoll), wake_fd_(wake_fd) { watch(wake_fd_); }
  EpollPoller(const EpollPoller&) = delete;
  EpollPoller& operator=(const EpollPoller&) = delete;
  ~EpollPoller() override {
    close(wake_fd_);
    close(epoll_);
  }

  void watch(int fd) override {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
  }

  void unwatch(int fd) override { epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr); }

  void wait(Duration timeout, std::vector<int>& ready) override {
    int wait_ms = -1;
    if (timeout != kNever)
      wait_ms = static_cast<int>(
          std::clamp<Duration>((timeout + kMillisecond - 1) / kMillisecond, 0, 3'600'000));
    std::array<epoll_event, 64> events{};
    const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), wait_ms);
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == wake_fd_) {
        uint64_t wakes = 0;
        [[maybe_unused]] const ssize_t got = read(wake_fd_, &wakes, sizeof(wakes));
      } else {
        ready.push_back(fd);
      }
    }
  }

  void wake() override {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
  }

private:
  int epoll_;
  int wake_fd_;
};

} // namespace

Result<std::unique_ptr<Poller>> make_poller() {
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0)
    return Error{ErrorCode::kInvalidArgument,
                 std::string("epoll_create1: ") + std::strerror(errno)};
  const int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd < 0) {
    Error error{ErrorCode::kInvalidArgument, std::string("eventfd: ") + std::strerror(errno)};
    close(epoll);
    return error;
  }
  return std::unique_ptr<Poller>(std::make_unique<EpollPoller>(epoll, wake_fd));
}

} // namespace lah::net

#endif
