// How long calls take, kind by kind: what adaptive deadlines and hedges go by.
#pragma once

#include <array>
#include <map>

#include "base/time.hpp"
#include "rpc/link.hpp"
#include "rpc/message.hpp"

namespace lah::rpc {

// Calls that can be expected to take alike: one expert of one server, one method, one size.
struct CallClass {
  PeerId peer = 0;
  Method method = Method::kForward;
  int size_class = 0; // log2 of the request's bytes
  std::string uid;
  auto operator<=>(const CallClass&) const = default;

  static CallClass of(PeerId peer, const Call& call);
};

class CallLatency {
public:
  void sample(const CallClass& kind, Duration elapsed);
  // Over the last kRecent calls; nothing before kEnough.
  std::optional<Duration> p95(const CallClass& kind) const;
  std::optional<Duration> longest(const CallClass& kind) const;

  static constexpr size_t kRecent = 64;
  static constexpr size_t kEnough = 8;

private:
  struct Recent {
    std::array<Duration, kRecent> elapsed{};
    size_t count = 0;
  };
  std::optional<Duration> quantile(const CallClass& kind, size_t percent) const;
  std::map<CallClass, Recent> recent_;
};

} // namespace lah::rpc
