// Asking an address for its key: how often, and until when.
#include <gtest/gtest.h>

#include "dht/hello.hpp"

namespace lah::dht {
namespace {

struct HelloTest : testing::Test {
  void ask(const Endpoint& to, Time deadline = kNever) {
    hello.ask(
        now, to, [this](const Endpoint&, const auto& answer) { answers.push_back(answer); }, sent,
        deadline);
  }
  // Goes from deadline to deadline until nothing is open; returns when each datagram was sent.
  std::vector<Time> run() {
    std::vector<Time> times(sent.size(), now);
    while (hello.next_deadline() != kNever) {
      now = hello.next_deadline();
      hello.on_timer(now, sent);
      times.resize(sent.size(), now);
    }
    return times;
  }

  SeededRng rng{1};
  crypto::Identity identity = crypto::Identity::generate(rng);
  crypto::Identity other = crypto::Identity::generate(rng);
  SealedCipher cipher{identity, "net", rng};
  SealedCipher other_cipher{other, "net", rng};
  HelloExchange hello{cipher};
  const Endpoint there = Endpoint::v4(0x50000001U, 8081);
  Time now = 0;
  std::vector<Datagram> sent;
  std::vector<std::optional<HelloExchange::Answer>> answers;
};

TEST_F(HelloTest, SilenceIsAskedThreeTimesAndThenGivenUp) {
  ask(there);
  EXPECT_EQ(run(), (std::vector<Time>{0, milliseconds(250), milliseconds(750)}));
  EXPECT_EQ(now, HelloExchange::kGiveUp);
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_FALSE(answers[0]);
}

TEST_F(HelloTest, TheDeadlineEndsItSooner) {
  for (const Time deadline : {Time{0}, milliseconds(100), milliseconds(250), milliseconds(600)}) {
    now = 0;
    sent.clear();
    answers.clear();
    ask(there, deadline);
    const std::vector<Time> times = run();
    EXPECT_EQ(times.size(), deadline > milliseconds(250) ? 2U : 1U);
    EXPECT_EQ(now, deadline);
    ASSERT_EQ(answers.size(), 1U);
    EXPECT_FALSE(answers[0]);
  }
}

TEST_F(HelloTest, AnAnswerAfterTheDeadlineIsNone) {
  ask(there, milliseconds(100));
  const Buffer reply = other_cipher.hello_reply(*crypto::parse_packet(sent[0].bytes));
  hello.on_timer(milliseconds(100), sent);
  EXPECT_FALSE(hello.on_reply(milliseconds(101), there, *crypto::parse_packet(reply)));
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_FALSE(answers[0]);
}

TEST_F(HelloTest, OneAnswerOfThatAddressToThatQuestionCounts) {
  ask(there);
  const Buffer reply = other_cipher.hello_reply(*crypto::parse_packet(sent[0].bytes));
  const auto packet = crypto::parse_packet(reply);
  EXPECT_FALSE(hello.on_reply(milliseconds(30), Endpoint::v4(0x50000002U, 8081), *packet));
  EXPECT_TRUE(hello.on_reply(milliseconds(40), there, *packet));
  EXPECT_FALSE(hello.on_reply(milliseconds(50), there, *packet));
  ASSERT_EQ(answers.size(), 1U);
  ASSERT_TRUE(answers[0]);
  EXPECT_EQ(answers[0]->key, other.public_key());
  EXPECT_EQ(answers[0]->rtt, milliseconds(40));
  EXPECT_EQ(hello.next_deadline(), kNever);
}

TEST_F(HelloTest, TooManyOpenOnesFailAtOnceAndUnsent) {
  for (size_t i = 0; i <= Limits::kPendingHellos; ++i)
    ask(there);
  EXPECT_EQ(sent.size(), Limits::kPendingHellos);
  hello.on_timer(0, sent);
  EXPECT_EQ(answers.size(), 1U);
  hello.abandon();
  EXPECT_EQ(answers.size(), Limits::kPendingHellos + 1);
}

} // namespace
} // namespace lah::dht
