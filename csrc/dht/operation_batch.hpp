#pragma once

#include <memory>
#include <unordered_map>

#include "dht/operation.hpp"

namespace lah::dht {

// Many operations that share their requests: what several of them want of one node in the same turn
// goes out as one FIND or STORE. Each part is an ordinary operation and sees the answers it would
// have got alone, so a batch ends as its parts would have.
//
// Parts start little by little, neighbours in the key space together: Limits::kBatchRequests bounds
// what is in flight, and neighbours want the same nodes.
class OperationBatch : public Operation, private OperationHost {
public:
  std::optional<Id> target() const override;
  void start(OperationHost& host, const std::vector<Contact>& near) override;
  void on_answer(OperationHost& host, const SentRequest& request, const Header& header,
                 const Reply& reply) override;
  void on_overdue(OperationHost& host, const SentRequest& request) override;
  void on_lapsed(OperationHost& host, const SentRequest& request) override;
  void on_failed(OperationHost& host, const SentRequest& request) override;
  bool finished() const override { return started_ && left_ == 0; }
  bool lingers() const override { return alive_ > 0; }
  void complete(OperationHost& host) override;

protected:
  // Parts in the order of their targets. What they tell their callers when they complete must not
  // touch this batch or its host.
  void set_parts(std::vector<std::unique_ptr<Operation>> parts);
  // Every part has completed, finished or not.
  virtual void on_completed() = 0;

private:
  struct Queued {
    size_t part;
    Contact to;
    Request body;
  };

  // OperationHost, for the parts
  uint64_t request(OpId part, const Contact& to, Request body) override;
  std::vector<Contact> closest(const Id& target) override { return host_->closest(target); }
  std::vector<Id> replicas_by_time(const Id& target,
                                   const std::vector<Contact>& near) const override {
    return host_->replicas_by_time(target, near);
  }
  bool verify(const Record& record) override { return host_->verify(record); }
  WallMs wall_ms() const override { return host_->wall_ms(); }
  Time now() const override { return host_->now(); }

  void pump();
  void start_parts();
  void send_queued();
  void answer_part(size_t part, const SentRequest& request, const Header& header,
                   const Reply& reply);
  void retire_if_finished(size_t part);
  std::vector<size_t> take_sent(uint64_t txid);

  OperationHost* host_ = nullptr;                 // of the call being served
  std::vector<std::unique_ptr<Operation>> parts_; // null once nothing is left to do
  std::vector<Queued> queued_;
  std::unordered_map<uint64_t, std::vector<size_t>> sent_; // by txid: whom the answer is for
  size_t next_ = 0;                                        // part to start
  size_t left_ = 0;                                        // parts whose callers wait
  size_t alive_ = 0;                                       // and those that linger
  bool started_ = false;
};

// True if `more` could join `request`, and has.
bool merge(Request& request, const Request& more);

} // namespace lah::dht
