// What Python listens to (learning_at_home/_network_listen.py).
#pragma once

#include "bindings/answer.hpp"
#include "dht/record.hpp"

namespace lah::bindings {

// [(owner's key, payload)], without those that their owners took back.
pybind11::list newest_first(std::vector<dht::Record> records);

// What a listener has not been told yet: the newest values only, whatever it missed, so it is as
// large as one answer. It holds nothing of Python's: the network thread may be the last to let go
// of it.
class Listener {
public:
  // The queue gets `ticket` whenever there is something to take.
  Listener(std::shared_ptr<AnswerQueue> queue, uint64_t ticket)
      : queue_(std::move(queue)), ticket_(ticket) {}

  uint64_t ticket() const { return ticket_; }
  // On the network thread.
  void tell(std::vector<dht::Record> values);
  // With the GIL: as newest_first() gives them; None if nothing came since the last call.
  pybind11::object take();

private:
  const std::shared_ptr<AnswerQueue> queue_;
  const uint64_t ticket_;
  std::mutex mutex_;
  std::optional<std::vector<dht::Record>> values_;
};

} // namespace lah::bindings
