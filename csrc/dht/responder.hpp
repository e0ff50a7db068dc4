#pragma once

#include <functional>

#include "dht/admission.hpp"
#include "dht/message.hpp"
#include "dht/routing_table.hpp"
#include "dht/storage.hpp"

namespace lah::dht {

// Answers the requests of other nodes from what this node knows. Never asks anything itself.
class Responder {
public:
  Responder(const Id& own, Storage& storage, const RoutingTable& table, RecordVerifier& verifier,
            Admission& admission)
      : own_(own), storage_(storage), table_(table), verifier_(verifier), admission_(admission) {}

  struct Asker {
    Contact contact;
    bool proven;         // its request carried a token of ours
    size_t reserved = 0; // bytes of what goes to it beside the reply's usual header
  };

  // `request_bytes` is the datagram's size: an unproven asker gets at most
  // Limits::kAmplification times as much back.
  Reply answer(const Asker& asker, const Request& request, size_t request_bytes, WallMs wall);

  // Sees every record that a request made this node store.
  std::function<void(const Record& record, bool changed)> on_stored;

private:
  PingReply ping(const Asker& asker) const;
  FindReply find(const Asker& asker, const FindRequest& request, size_t budget, WallMs wall) const;
  StoreReply store(const Asker& asker, const StoreRequest& request, WallMs wall);
  PageReply page(const PageRequest& request, size_t budget, WallMs wall) const;

  void survey(WallMs wall);

  const Id own_;
  Storage& storage_;
  const RoutingTable& table_;
  RecordVerifier& verifier_;
  Admission& admission_;
  WallMs surveyed_at_ = 0;
};

} // namespace lah::dht
