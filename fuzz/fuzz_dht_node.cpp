// A node among hostile neighbours: the input is a script of plaintexts, raw datagrams, pauses and
// operations. Nothing may crash, and what the node keeps stays within its limits.
#include <cstdlib>

#include "dht/node.hpp"
#include "sim/hash_cipher.hpp"
#include "wire/writer.hpp"

namespace {

using namespace lah;

struct Script {
  ByteView left;
  uint8_t byte() {
    if (left.empty())
      return 0;
    const auto value = std::to_integer<uint8_t>(left.front());
    left = left.subspan(1);
    return value;
  }
  ByteView bytes() {
    const size_t size = std::min<size_t>(left.size(), size_t{byte()} * 5);
    const ByteView taken = left.first(std::min(size, left.size()));
    left = left.subspan(taken.size());
    return taken;
  }
};

const crypto::Identity& identity(uint64_t seed) {
  static const std::array<crypto::Identity, 3> identities = [] {
    SeededRng rng(7);
    return std::array{crypto::Identity::generate(rng), crypto::Identity::generate(rng),
                      crypto::Identity::generate(rng)};
  }();
  return identities[seed % identities.size()];
}

// An answer to what the node sent last, whose txid a hostile peer knows: a well-formed header with
// a clock of the script's choice, then fields of the script's choice.
Buffer answer_to(sim::HashCipher& cipher, ByteView question, Script& script) {
  const auto packet = crypto::parse_packet(question);
  if (!packet || packet->kind != crypto::PacketKind::kSealed)
    return packet ? cipher.hello_reply(*packet) : Buffer{};
  const auto opened = cipher.open(*packet);
  if (!opened || opened->size() < 11)
    return {};
  const uint8_t shape = script.byte();
  const size_t fields = shape & 7;
  Buffer plaintext{static_cast<std::byte>(0x97 + fields)};
  plaintext.push_back((*opened)[1] | std::byte{0x40});
  plaintext.insert(plaintext.end(), opened->begin() + 2, opened->begin() + 11); // txid
  wire::Writer header; // its array is left out
  header.u64(shape >> 3 & 1).bin(Buffer(8)).bin(Buffer(shape & 16 ? 16 : 0));
  header.u64(uint64_t{script.byte()} << (shape >> 5) * 8).bin({});
  append(plaintext, header.view());
  append(plaintext, script.bytes());
  plaintext.resize(std::min(plaintext.size(), Limits::kDatagramBytes - crypto::kPacketOverhead));
  const auto sealed = cipher.seal(packet->sender, plaintext);
  return sealed ? *sealed : Buffer{};
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  SeededRng rng(1);
  sim::HashCipher cipher(identity(0).public_key(), "fuzz", rng);
  std::array<sim::HashCipher, 2> peers{sim::HashCipher(identity(1).public_key(), "fuzz", rng),
                                       sim::HashCipher(identity(2).public_key(), "fuzz", rng)};
  const std::array<Endpoint, 2> addresses{Endpoint::v4(0x0a000001, 1), Endpoint::v4(0x0a000002, 2)};
  Script script{std::as_bytes(std::span(data, size))};
  dht::NodeConfig config{"fuzz", {addresses[0]}};
  if (script.byte() % 2 != 0) // in its second life
    config.state.contacts = {{dht::Contact::make(identity(2).public_key(), {}, addresses[1])}};
  dht::Node node(config, identity(0), cipher, rng);
  Time now = 0;
  WallMs wall = 1'700'000'000'000;
  std::array<Buffer, 2> last_sent;
  size_t steps = 0;
  while (!script.left.empty() && ++steps < 200) {
    const uint8_t action = script.byte();
    const size_t who = action & 1;
    Buffer datagram;
    switch (action >> 1 & 7) {
    case 0:
    case 1:
      if (const auto sealed = peers[who].seal(identity(0).public_key(), script.bytes()))
        datagram = *sealed;
      break;
    case 2:
    case 3:
      datagram = answer_to(peers[who], last_sent[who], script);
      break;
    case 4: {
      const ByteView raw = script.bytes();
      datagram.assign(raw.begin(), raw.end());
      break;
    }
    case 5:
      node.start_get(now, node.wall(), dht::Id{{script.byte(), 0, 0, 0}}, now + 5 * kSecond,
                     [](const auto&) {});
      break;
    case 6:
      node.start_store(now, node.wall(),
                       node.sign(dht::Id{{script.byte(), 0, 0, 0}}, node.next_seq(),
                                 node.wall() + 1000, Buffer(9)),
                       now + 5 * kSecond, [](const auto&) {});
      break;
    default: {
      const Duration pause = milliseconds(int64_t{script.byte()} * 100);
      now += pause;
      wall += static_cast<WallMs>(pause / kMillisecond);
    }
    }
    if (!datagram.empty())
      node.on_datagram(now, wall, addresses[who], datagram);
    node.on_timer(now, wall);
    for (const dht::Datagram& sent : node.take_datagrams()) {
      if (sent.bytes.size() > Limits::kDatagramBytes)
        std::abort();
      for (size_t peer = 0; peer < addresses.size(); ++peer)
        if (sent.to == addresses[peer])
          last_sent[peer] = sent.bytes;
    }
  }
  if (node.table().size() > 2 || node.storage().bytes() > Limits::kStoredBytes)
    std::abort(); // only the two who can answer may be in the table
  if (!dht::decode_state(dht::encode_state(node.save_state())))
    std::abort();
  node.abandon();
  return 0;
}
