// What will happen when: a heap of small plain entries; datagrams lie in a pool beside it.
#pragma once

#include <vector>

#include "base/endpoint.hpp"
#include "base/time.hpp"

namespace lah::sim {

// A datagram on its way.
struct Delivery {
  Endpoint from; // as its receiver sees it
  Endpoint to;
  Buffer bytes;
};

struct Event {
  static constexpr uint32_t kTimer = UINT32_MAX;

  Time at;
  uint64_t order; // of creation, so that equal times have one order
  uint32_t host;
  uint32_t delivery; // its place in the pool, or kTimer

  bool is_timer() const { return delivery == kTimer; }
  bool before(const Event& other) const {
    return at != other.at ? at < other.at : order < other.order;
  }
};

class EventQueue {
public:
  void push_timer(Time at, size_t host) { push({at, ++last_order_, to32(host), Event::kTimer}); }
  void push_delivery(Time at, size_t host, Delivery delivery);

  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }
  const Event& top() const { return heap_.front(); }
  Event pop();
  // Takes the datagram of a popped event out of the pool.
  Delivery take(const Event& event);

private:
  static uint32_t to32(size_t value) { return static_cast<uint32_t>(value); }
  void push(const Event& event);

  std::vector<Event> heap_; // of four children each: half the cache lines of two
  std::vector<Delivery> pool_;
  std::vector<uint32_t> free_;
  uint64_t last_order_ = 0;
};

} // namespace lah::sim
