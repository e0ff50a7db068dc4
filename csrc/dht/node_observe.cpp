// How a node learns whether strangers reach it, and helps others to.
#include "dht/node.hpp"
#include "dht/observe_operation.hpp"

namespace lah::dht {
namespace {
using Step = ObserveRequest::Step;
constexpr size_t kOthers = 2;      // dial back for one who asks
constexpr size_t kCandidates = 16; // looked at for them
// Of an ask beside its packet: it pays for kOthers requests that carry a contact.
constexpr size_t kAskPadding = Limits::kUnprovenRequest - 2 * 74;
} // namespace

bool Node::read_only() const {
  return config_.client_mode || reachability_.is_unreachable();
}

void Node::run_reachability() {
  if (const auto seen_at = most_observed())
    reachability_.observed(now_, *seen_at);
  reachability_.on_timer(now_);
  run_withdrawal();
  if (config_.client_mode || !reachability_.due(now_) || !ready_)
    return;
  const std::vector<Contact> helpers = some_proven_to(1, [](const Contact&) { return true; });
  if (helpers.empty())
    return;
  begin(std::make_unique<ObserveOperation>(
            helpers[0],
            ObserveRequest{Step::kAsk, reachability_.start(now_, rng_), {}, kAskPadding},
            [this](size_t others) { reachability_.passed_on(now_, others); }),
        kNever);
}

void Node::run_withdrawal() {
  if (reachability_.state() == Reachability::State::kPublic)
    withdrawal_.forget();
  if (!reachability_.is_unreachable())
    return;
  for (const Contact& holder : withdrawal_.next())
    begin(std::make_unique<PingOperation>(holder,
                                          [this, holder](const PingResult& result) {
                                            // Tried again until it is taken for dead here.
                                            if (result.rtt < 0 && table_.contains(holder.id))
                                              withdrawal_.answered(holder);
                                          }),
          kNever);
}

// Contacts near a random point to whom our address is proven.
std::vector<Contact> Node::some_proven_to(size_t count,
                                          const std::function<bool(const Contact&)>& fits) {
  const Id point{{rng_.u64(), rng_.u64(), rng_.u64(), rng_.u64()}};
  std::vector<Contact> chosen;
  for (const Contact& contact : table_.closest(point, kCandidates))
    if (chosen.size() < count && memory_.token(contact.key) && fits(contact))
      chosen.push_back(contact);
  return chosen;
}

std::optional<Reply> Node::on_observe(const Contact& from, bool proven,
                                      const ObserveRequest& request) {
  if (request.step == Step::kDialBack) {
    reachability_.dialled_back(now_, from.endpoint, request.nonce);
    return std::nullopt;
  }
  if (now_ - observe_window_ >= kSecond) {
    observe_window_ = now_;
    observes_in_window_ = 0;
  }
  const bool welcome = proven || request.step == Step::kPassOn; // that one makes us send less
  if (!welcome || observes_in_window_ >= Limits::kObservesPerSecond)
    return ObserveReply{0};
  ++observes_in_window_;
  return ObserveReply{request.step == Step::kAsk ? pass_on(from, request.nonce)
                                                 : dial_back(from, *request.target, request.nonce)};
}

size_t Node::pass_on(const Contact& asker, uint64_t nonce) {
  const Id point{{rng_.u64(), rng_.u64(), rng_.u64(), rng_.u64()}};
  size_t others = 0;
  for (const Contact& other : table_.closest(point, kCandidates)) {
    if (others == kOthers || other.endpoint.ip == asker.endpoint.ip)
      continue;
    ++others;
    begin(std::make_unique<ObserveOperation>(other, ObserveRequest{Step::kPassOn, nonce, asker, 0},
                                             nullptr),
          kNever);
  }
  return others;
}

// Sent once and never answered: whoever named this target made us send less than it sent.
size_t Node::dial_back(const Contact& by, const Contact& target, uint64_t nonce) {
  const bool into_private = target.endpoint.is_private() && !by.endpoint.is_private();
  if (!is_sendable(target.endpoint) || into_private || target.key == identity_.public_key())
    return 0;
  const Header header{rng_.u64(),   read_only(),   puzzle_,
                      std::nullopt, machine_wall_, admission_.certificate()};
  auto sealed = cipher_.seal(
      target.key, encode(header, Request(ObserveRequest{Step::kDialBack, nonce, {}, 0})));
  if (!sealed)
    return 0;
  send(target.endpoint, std::move(*sealed));
  return 1;
}

} // namespace lah::dht
