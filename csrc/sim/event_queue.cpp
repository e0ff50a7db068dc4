#include "sim/event_queue.hpp"

#include <algorithm>
#include <utility>

namespace lah::sim {
namespace {
constexpr size_t kChildren = 4;
}

void EventQueue::push(const Event& event) {
  heap_.push_back(event);
  size_t place = heap_.size() - 1;
  while (place > 0) {
    const size_t parent = (place - 1) / kChildren;
    if (!event.before(heap_[parent]))
      break;
    heap_[place] = heap_[parent];
    place = parent;
  }
  heap_[place] = event;
}

Event EventQueue::pop() {
  const Event first = heap_.front();
  const Event moved = heap_.back();
  heap_.pop_back();
  if (heap_.empty())
    return first;
  size_t place = 0;
  while (true) {
    const size_t begin = place * kChildren + 1;
    if (begin >= heap_.size())
      break;
    const size_t end = std::min(begin + kChildren, heap_.size());
    size_t least = begin;
    for (size_t child = begin + 1; child < end; ++child)
      if (heap_[child].before(heap_[least]))
        least = child;
    if (!heap_[least].before(moved))
      break;
    heap_[place] = heap_[least];
    place = least;
  }
  heap_[place] = moved;
  return first;
}

void EventQueue::push_delivery(Time at, size_t host, Delivery delivery) {
  if (free_.empty()) {
    free_.push_back(to32(pool_.size()));
    pool_.emplace_back();
  }
  const uint32_t place = free_.back();
  free_.pop_back();
  pool_[place] = std::move(delivery);
  push({at, ++last_order_, to32(host), place});
}

Delivery EventQueue::take(const Event& event) {
  free_.push_back(event.delivery);
  return std::move(pool_[event.delivery]);
}

} // namespace lah::sim
