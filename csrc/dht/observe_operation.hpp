#pragma once

#include "dht/operation.hpp"

namespace lah::dht {

// One OBSERVE, asked or passed on. Reports to how many others it was passed on; none if there was
// no answer.
class ObserveOperation final : public Operation {
public:
  using Done = std::function<void(size_t others)>;
  ObserveOperation(const Contact& to, ObserveRequest request, Done done)
      : to_(to), request_(std::move(request)), done_(std::move(done)) {}

  void start(OperationHost& host, const std::vector<Contact>&) override {
    host.request(id, to_, request_);
  }
  void on_answer(OperationHost&, const SentRequest&, const Header&, const Reply& reply) override {
    if (const auto* observe = std::get_if<ObserveReply>(&reply))
      others_ = observe->others;
    finished_ = true;
  }
  void on_overdue(OperationHost&, const SentRequest&) override {}
  void on_failed(OperationHost&, const SentRequest&) override { finished_ = true; }
  bool finished() const override { return finished_; }
  void complete(OperationHost&) override {
    if (done_)
      done_(others_);
  }

private:
  Contact to_;
  ObserveRequest request_;
  Done done_;
  size_t others_ = 0;
  bool finished_ = false;
};

} // namespace lah::dht
