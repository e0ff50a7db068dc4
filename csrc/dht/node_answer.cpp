#include "dht/node.hpp"

namespace lah::dht {

Reply Node::answer(const Responder::Asker& asker, const RequestMessage& message, size_t bytes) {
  if (const auto* notify = std::get_if<NotifyRequest>(&message.body))
    return subscriptions_.on_notify(asker.contact, *notify);
  if (const auto* listen = std::get_if<ListenRequest>(&message.body)) {
    if (!asker.proven)
      return ErrorReply{ErrorCode::kNotPermitted};
    return listeners_.listen(now_, wall_, asker.contact, *listen, storage_);
  }
  return responder_.answer(asker, message.body, bytes, wall_);
}

void Node::on_stored(const Record& record, bool changed) {
  listeners_.on_stored(now_, wall_, record, changed);
  subscriptions_.on_stored(record);
}

void Node::notify_listeners() {
  for (Listeners::Push& push : listeners_.take_due(now_, wall_, storage_)) {
    const Contact to = push.to;
    NotifyRequest body = push.body;
    begin(std::make_unique<ExchangeOperation>(to, std::move(body),
                                              [this, push = std::move(push)](const Reply* reply) {
                                                listeners_.on_pushed(now_, push, reply);
                                              }),
          kNever);
  }
}

} // namespace lah::dht
