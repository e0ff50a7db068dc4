#include "dht/node.hpp"

namespace lah::dht {

void Node::on_unadmitted_reply(const SentRequest& request) {
  ++counters_.not_admitted;
  memory_.forget_token(request.to.key); // so that it is asked to show its certificate again
  table_.remove(request.to.id);
  note_outcome(false);
  with_operation(request.op, [&](Operation& op) { op.on_failed(*this, request); });
}

void Node::renew_certificate(Buffer certificate) {
  admission_.renew(std::move(certificate));
  memory_.forget_tokens();
}

// A HELLO proves a key. Whether its owner may take part, and lets us in, a PING tells.
void Node::ask_to_be_admitted(const Contact& peer) {
  ++open_hellos_;
  begin(std::make_unique<PingOperation>(peer,
                                        [this](const PingResult& result) {
                                          --open_hellos_;
                                          if (result.rtt >= 0)
                                            join();
                                          if (!looking_for_way_in())
                                            release_parked();
                                        }),
        kNever);
}

} // namespace lah::dht
