#include "dht/node.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
constexpr size_t kPingTokens = 64;
constexpr Duration kNatForgets = 90 * kSecond;
} // namespace

Node::Node(NodeConfig config, const crypto::Identity& identity, PacketCipher& cipher, Rng& rng)
    : config_(std::move(config)), identity_(identity), cipher_(cipher), rng_(rng),
      id_(node_id(identity.public_key(), puzzle_)),
      admission_(config_.admission, config_.network_id), table_(id_, config_.table_size),
      upkeep_(table_), storage_(id_), verifier_(config_.network_id, config_.verified), tokens_(rng),
      responder_(id_, storage_, table_, verifier_, admission_), memory_(table_), hello_(cipher),
      bootstrap_(config_.seeds), subscriptions_(*this), newcomers_(rng),
      ready_(config_.seeds.empty() && config_.state.contacts.empty()),
      last_seq_(config_.state.seq) {
  responder_.on_stored = [this](const Record& record, bool changed) { on_stored(record, changed); };
}

// --- datagrams -----------------------------------------------------------------------------------

void Node::set_time(Time now, WallMs wall) {
  now_ = now;
  machine_wall_ = wall;
  wall_ = clock_offset_.corrected(wall);
}

void Node::resume(Time now, WallMs wall) {
  now_ = now;
  wall_ = wall;
}

void Node::send(const Endpoint& to, Buffer bytes) {
  reachability_.sent(now_, to);
  outbox_.push_back({to, std::move(bytes)});
}

std::vector<Datagram> Node::take_datagrams() {
  counters_.packets_out += outbox_.size();
  for (const Datagram& datagram : outbox_)
    counters_.bytes_out += datagram.bytes.size();
  return std::exchange(outbox_, {});
}

void Node::on_datagram(Time now, WallMs wall, const Endpoint& from, ByteView bytes) {
  set_time(now, wall);
  ++counters_.packets_in;
  counters_.bytes_in += bytes.size();
  const Result<crypto::Packet> packet = crypto::parse_packet(bytes);
  if (!packet || !is_sendable(from)) {
    ++counters_.bad_packets;
    return;
  }
  const bool costly =
      packet->kind == crypto::PacketKind::kHello ||
      (packet->kind == crypto::PacketKind::kSealed && !cipher_.knows(packet->sender));
  if (!costly || newcomers_.admit(now, from, bytes))
    on_packet(from, *packet, bytes.size());
  settle();
}

void Node::run_newcomers() {
  for (const Newcomers::Packet& waiting : newcomers_.take_due())
    if (const auto packet = crypto::parse_packet(waiting.bytes))
      on_packet(waiting.from, *packet, waiting.bytes.size());
}

void Node::on_packet(const Endpoint& from, const crypto::Packet& packet, size_t bytes) {
  if (packet.kind == crypto::PacketKind::kSealed)
    on_message(from, packet, bytes);
  else
    on_hello(from, packet);
}

void Node::on_hello(const Endpoint& from, const crypto::Packet& packet) {
  if (packet.kind == crypto::PacketKind::kHelloReply) {
    if (!hello_.on_reply(now_, from, packet))
      ++counters_.bad_packets;
    return;
  }
  send(from, cipher_.hello_reply(packet));
}

void Node::on_message(const Endpoint& from, const crypto::Packet& packet, size_t bytes) {
  const Result<Buffer> plaintext = cipher_.open(packet);
  if (!plaintext) {
    ++counters_.bad_packets;
    return;
  }
  const auto decoded = decode(*plaintext, [this](uint64_t txid) {
    const auto operation = pending_.operation(txid);
    return operation && (*operation == kUpkeep || operations_.contains(*operation));
  });
  if (!decoded) {
    ++counters_.bad_packets;
    return;
  }
  const Header& header =
      std::visit([](const auto& message) -> const Header& { return message.header; }, *decoded);
  const Contact sender = Contact::make(packet.sender, header.puzzle, from);
  if (const auto* reply = std::get_if<ReplyMessage>(&*decoded)) {
    on_reply(sender, *reply);
  } else if (!admission_.admits(sender.key, header.certificate, wall_)) {
    ++counters_.not_admitted;
    reply_to(sender, header.txid, ErrorReply{ErrorCode::kNotPermitted}, false);
  } else if (const auto* request = std::get_if<RequestMessage>(&*decoded)) {
    on_request(sender, *request, bytes);
  } else {
    reply_to(sender, header.txid, ErrorReply{ErrorCode::kProtocol}, false);
  }
}

void Node::on_request(const Contact& from, const RequestMessage& message, size_t bytes) {
  tokens_.rotate_if_due(now_, rng_);
  const std::optional<Token>& token = message.header.token;
  const bool proven = token && tokens_.accepts(*token, from.endpoint, from.key);
  if (proven)
    cipher_.keep(from.key);
  ++counters_.requests_answered;
  const size_t certificate = certificate_wire_bytes(admission_.certificate());
  const size_t greeting = crypto::kPacketOverhead + kHeaderWireBytes + certificate;
  const size_t reserved = proven ? 0 : certificate + (message.header.client_mode ? 0 : greeting);
  size_t sent = 0;
  if (const auto* observe = std::get_if<ObserveRequest>(&message.body)) {
    if (const auto reply = on_observe(from, proven, *observe))
      sent = reply_to(from, message.header.txid, *reply, proven);
  } else {
    reachability_.heard(now_, from.endpoint);
    sent = reply_to(from, message.header.txid, answer({from, proven, reserved}, message, bytes),
                    proven);
  }
  // What an unproven address is sent is bounded by what came from there, our question included.
  if (!read_only() && reachability_.state() == Reachability::State::kUnknown)
    withdrawal_.answered(from);
  if (message.header.client_mode)
    table_.remove(from.id);
  else if (proven || sent + greeting <= Limits::kAmplification * bytes)
    greet(from);
}

size_t Node::reply_to(const Contact& from, uint64_t txid, const Reply& body, bool known) {
  const Header header{txid,          read_only(),
                      puzzle_,       tokens_.issue(from.endpoint, from.key),
                      machine_wall_, known ? Buffer{} : admission_.certificate()};
  auto sealed = cipher_.seal(from.key, encode(header, body));
  if (!sealed)
    return 0;
  const size_t bytes = sealed->size();
  send(from.endpoint, std::move(*sealed));
  return bytes;
}

// Somebody who talks to us may be worth knowing; only its answer to our own question proves it.
void Node::greet(const Contact& stranger) {
  if (!table_.has_room(stranger)) {
    upkeep_.heard(stranger);
    return;
  }
  if (greeted_.size() >= Limits::kGreetings || !greeted_.insert(stranger.id).second)
    return;
  auto question = std::make_unique<PingOperation>(
      stranger, [this, id = stranger.id](const PingResult&) { greeted_.erase(id); });
  question->unasked = true;
  begin(std::move(question), kNever);
}

void Node::on_reply(const Contact& from, const ReplyMessage& message) {
  const MessageKind kind = std::visit([](const auto& reply) { return reply.kKind; }, message.body);
  const auto request = pending_.take(message.header.txid, from.key, from.endpoint, kind);
  if (!request) {
    ++counters_.bad_packets;
    return;
  }
  if (!admission_.admits(from.key, message.header.certificate, wall_)) {
    on_unadmitted_reply(*request);
    return;
  }
  cipher_.keep(from.key);
  const std::optional<Duration> rtt =
      request->retransmitted() ? std::nullopt : std::optional(now_ - request->sent_at);
  if (rtt)
    clock_offset_.sample(now_, from.endpoint, message.header.wall_ms, machine_wall_, *rtt);
  const auto* error = std::get_if<ErrorReply>(&message.body);
  const bool refused = error != nullptr && error->code == ErrorCode::kNotPermitted;
  note_outcome(!refused);
  const bool met = memory_.has_met(from);
  const bool greeted = greeted_.contains(from.id) && !table_.contains(from.id);
  if (refused) // it never saw a certificate of ours, or forgot it
    ++counters_.refusals;
  else if (message.header.client_mode)
    table_.remove(from.id);
  else
    table_.confirm(from, rtt, now_);
  memory_.answered(from, rtt, met);
  if (greeted && table_.contains(from.id)) // behind a NAT it could answer only because it had asked
    upkeep_.ask_again(from, now_ + kNatForgets);
  // Of the many that upkeep pings, few are ever asked for more.
  if (refused)
    memory_.forget_token(from.key);
  else if (message.header.token && (kind != MessageKind::kPing || memory_.size() < kPingTokens))
    memory_.remember(from.key, *message.header.token);
  if (const auto* found = std::get_if<FindReply>(&message.body))
    hear_of(from, *found);
  if (const auto* ping = std::get_if<PingReply>(&message.body))
    observe(ping->observed);
  else if (const auto* find = std::get_if<FindReply>(&message.body))
    observe(find->observed);
  with_operation(request->op, [&](Operation& operation) {
    operation.on_answer(*this, *request, message.header, message.body);
  });
}

void Node::observe(const Endpoint& observed) {
  if (!is_sendable(observed) || (observed_.size() >= 16 && !observed_.contains(observed.ip)))
    return;
  auto& [votes, endpoint] = observed_[observed.ip];
  ++votes;
  endpoint = observed;
}

std::optional<Endpoint> Node::most_observed() const {
  size_t most = 0;
  std::optional<Endpoint> endpoint;
  for (const auto& [ip, vote] : observed_)
    if (vote.first > most) {
      most = vote.first;
      endpoint = vote.second;
    }
  return endpoint;
}

uint64_t Node::request(OpId op, const Contact& to, Request body) {
  Header header{rng_.u64(), read_only(), puzzle_, {}, machine_wall_};
  if (admission_.knows(to.key, wall_))
    header.token = memory_.token(to.key);
  if (!header.token) // without one, each side shows its certificate
    header.certificate = admission_.certificate();
  Buffer plaintext = encode(header, body);
  auto* find = std::get_if<FindRequest>(&body);
  if (const size_t bytes = plaintext.size() + crypto::kPacketOverhead;
      find != nullptr && !header.token && bytes < Limits::kUnprovenRequest) {
    find->padding = Limits::kUnprovenRequest - bytes;
    plaintext = encode(header, body);
  }
  const MessageKind kind = std::visit([](const auto& request) { return request.kKind; }, body);
  SentRequest sent{header.txid, op, to, kind, {}, now_};
  // A contact whose key is no key stays unsent, and fails as silence does.
  if (auto sealed = cipher_.seal(to.key, plaintext)) {
    const auto operation = operations_.find(op);
    if (operation == operations_.end() || !operation->second->unasked)
      sent.datagram = *sealed;
    send(to.endpoint, std::move(*sealed));
  }
  // The first strangers to answer are the nearest: what they say of others is not to be trusted
  // yet.
  pending_.add(std::move(sent), memory_.rto(to), std::max(memory_.strangers_rto(), kRtoInitial));
  return header.txid;
}

std::vector<Contact> Node::closest(const Id& target) {
  table_.touch(target, now_);
  return table_.closest(target, Limits::kFindContacts);
}

// Our own neighbours we know all of. Contacts that lie as close together around a key as these
// around us are all there are.
std::vector<Id> Node::replicas_by_time(const Id& target, const std::vector<Contact>& near) const {
  // Half as far again is chance; twice as far is a table that knows half of them.
  if (near.size() < Limits::kReplicas ||
      distance(near[Limits::kReplicas - 1].id, target).words[0] / 3 > neighbours_reach_ / 2)
    return {};
  std::vector<std::pair<Duration, Id>> replicas;
  for (size_t i = 0; i < Limits::kReplicas; ++i)
    replicas.emplace_back(memory_.rtt(near[i]).value_or(kNever), near[i].id);
  std::sort(replicas.begin(), replicas.end());
  std::vector<Id> ids;
  for (const auto& [rtt, id] : replicas)
    ids.push_back(id);
  return ids;
}

void Node::learn(const Contact& peer, Duration rtt, Time now) {
  table_.confirm(peer, rtt, now);
}

Record Node::sign(const Id& key, uint64_t seq, WallMs expiry_ms, Buffer payload) {
  last_seq_ = std::max(last_seq_, seq);
  Record record =
      sign_record(identity_, config_.network_id, key, seq, expiry_ms, std::move(payload));
  record.certificate = admission_.certificate();
  return record;
}

NodeStatus Node::status() const {
  NodeStatus status = counters_;
  status.peers = table_.size();
  status.ready = ready_;
  status.isolated = isolated();
  status.clock_offset_ms = clock_offset_.ms();
  status.newcomers_refused = newcomers_.refused();
  status.records = storage_.records();
  status.operations = open_operations();
  status.reachability = reachability_.state();
  status.observed = most_observed();
  if (status.observed && !config_.local_addresses.empty())
    status.behind_nat =
        std::none_of(config_.local_addresses.begin(), config_.local_addresses.end(),
                     [&](const Endpoint& local) { return local.ip == status.observed->ip; });
  return status;
}

} // namespace lah::dht
