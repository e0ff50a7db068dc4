#pragma once

#include <functional>
#include <optional>

#include "base/endpoint.hpp"
#include "base/time.hpp"
#include "dht/cipher.hpp"

namespace lah::dht {

struct Datagram {
  Endpoint to;
  Buffer bytes;
};

// Asks addresses for their signed keys. A question is sent up to three times (0, 250 ms, 750 ms)
// and given up after kGiveUp. Sans-IO: the owner sends what is put into `out`.
class HelloExchange {
public:
  // Called once: with the key and the time the answer took, or without.
  struct Answer {
    crypto::PublicKey key;
    Duration rtt; // since the first sending
  };
  using Done = std::function<void(const Endpoint& from, const std::optional<Answer>& answer)>;

  explicit HelloExchange(PacketCipher& cipher) : cipher_(cipher) {}

  // Fails at once (on the next timer) if too many are open, and at the deadline if that is sooner.
  void ask(Time now, const Endpoint& to, Done done, std::vector<Datagram>& out,
           Time deadline = kNever);
  // True if the reply answered one of our questions.
  bool on_reply(Time now, const Endpoint& from, const crypto::Packet& reply);
  void on_timer(Time now, std::vector<Datagram>& out);
  Time next_deadline() const;
  // Answers every open question with nothing.
  void abandon();

  static constexpr Duration kGiveUp = milliseconds(1750);

private:
  struct Question {
    Endpoint to;
    std::array<uint8_t, 24> nonce;
    Buffer bytes;
    Time first_sent;
    int sent;
    Time next;
    Time deadline;
    Done done;
  };

  PacketCipher& cipher_;
  std::vector<Question> questions_;
};

} // namespace lah::dht
