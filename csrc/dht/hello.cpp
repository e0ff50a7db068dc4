#include "dht/hello.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
constexpr std::array<Duration, 3> kPauses{milliseconds(250), milliseconds(500), milliseconds(1000)};
} // namespace

void HelloExchange::ask(Time now, const Endpoint& to, Done done, std::vector<Datagram>& out,
                        Time deadline) {
  const Time next = std::min(now + kPauses[0], deadline);
  Question question{to, {}, {}, now, 1, next, deadline, std::move(done)};
  if (questions_.size() >= Limits::kPendingHellos) {
    question.sent = static_cast<int>(kPauses.size());
    question.next = now;
  } else {
    question.bytes = cipher_.hello(question.nonce);
    out.push_back({to, question.bytes});
  }
  questions_.push_back(std::move(question));
}

bool HelloExchange::on_reply(Time now, const Endpoint& from, const crypto::Packet& reply) {
  const auto found =
      std::find_if(questions_.begin(), questions_.end(), [&](const Question& question) {
        return question.to == from && question.nonce == reply.nonce;
      });
  if (found == questions_.end() || !cipher_.accept_hello_reply(reply, found->nonce))
    return false;
  const Question question = std::move(*found);
  questions_.erase(found);
  question.done(from, Answer{reply.sender, now - question.first_sent});
  return true;
}

void HelloExchange::on_timer(Time now, std::vector<Datagram>& out) {
  std::vector<Question> silent;
  for (Question& question : questions_) {
    if (question.next > now)
      continue;
    if (question.sent == static_cast<int>(kPauses.size()) || question.deadline <= now) {
      silent.push_back(std::move(question));
      question.sent = -1;
      continue;
    }
    out.push_back({question.to, question.bytes});
    question.next =
        std::min(now + kPauses[static_cast<size_t>(question.sent++)], question.deadline);
  }
  std::erase_if(questions_, [](const Question& question) { return question.sent < 0; });
  for (const Question& question : silent) // last: `done` may ask again
    question.done(question.to, std::nullopt);
}

Time HelloExchange::next_deadline() const {
  Time next = kNever;
  for (const Question& question : questions_)
    next = std::min(next, question.next);
  return next;
}

void HelloExchange::abandon() {
  for (const Question& question : std::exchange(questions_, {}))
    question.done(question.to, std::nullopt);
}

} // namespace lah::dht
