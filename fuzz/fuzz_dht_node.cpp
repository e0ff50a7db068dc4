// A node among hostile neighbours: the input is a script of plaintexts, well-formed requests with
// the tokens they earned, raw datagrams, pauses and operations, in an open or a closed network.
// Nothing may crash, and what the node keeps stays within its limits.
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

constexpr WallMs kWall = 1'700'000'000'000;

// Of admission to the closed network, which the third identity owns.
Buffer certificate(uint64_t holder) {
  static const std::array<Buffer, 2> certificates = [] {
    const auto issued = [](uint64_t whom) {
      return crypto::encode_certificate(crypto::issue_certificate(
          identity(2), "fuzz", identity(whom).public_key(), kWall + 300'000));
    };
    return std::array{issued(0), issued(1)};
  }();
  return certificates[holder];
}

dht::Record record(const crypto::Identity& owner, const dht::Id& key, WallMs wall, Script& script) {
  const uint64_t seq = script.byte();
  const size_t payload = size_t{script.byte()} * 3;
  return dht::sign_record(owner, "fuzz", key, seq, wall + 256 * uint64_t{script.byte()},
                          Buffer(payload));
}

// What an honest peer might ask, in the wrong order.
dht::Request request_of(const crypto::Identity& peer, const dht::Contact& other, WallMs wall,
                        Script& script) {
  const uint8_t shape = script.byte();
  const dht::Id key{{script.byte(), 0, 0, 0}};
  const bool flag = (shape & 8) != 0;
  switch (shape & 7) {
  case 0:
    return dht::ListenRequest{key, uint64_t{script.byte()} * 235, flag};
  case 1:
    return dht::PageRequest{key, flag ? std::optional(peer.public_key()) : std::nullopt};
  case 2:
    return dht::NotifyRequest{key, {record(peer, key, wall, script)}, {}};
  case 3: {
    const dht::Record fresh = record(peer, key, wall, script);
    return dht::NotifyRequest{
        key, {}, {{fresh.owner, fresh.seq, fresh.expiry_ms, fresh.signature}}};
  }
  case 4:
    return dht::StoreRequest{{record(peer, key, wall, script)}};
  case 5:
    return dht::FindRequest{{key}, flag, script.byte(), script.byte()};
  case 6:
    return flag ? dht::ObserveRequest{dht::ObserveRequest::Step::kPassOn, shape, other, 0}
                : dht::ObserveRequest{dht::ObserveRequest::Step::kAsk, shape, {}, script.byte()};
  default:
    return dht::PingRequest{};
  }
}

std::optional<dht::Token> token_in(sim::HashCipher& peer, ByteView datagram) {
  const auto packet = crypto::parse_packet(datagram);
  if (!packet || packet->kind != crypto::PacketKind::kSealed)
    return std::nullopt;
  const auto opened = peer.open(*packet);
  if (!opened)
    return std::nullopt;
  const auto message = dht::decode(*opened);
  const auto* reply = message ? std::get_if<dht::ReplyMessage>(&*message) : nullptr;
  return reply == nullptr ? std::nullopt : reply->header.token;
}

// An answer to what the node sent last, whose txid a hostile peer knows: a well-formed header with
// a clock of the script's choice, then fields of the script's choice.
Buffer answer_to(sim::HashCipher& cipher, ByteView question, const Buffer& shown, Script& script) {
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
  header.u64(uint64_t{script.byte()} << (shape >> 5) * 8).bin(shown);
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
  const uint8_t kind = script.byte();
  const bool closed = (kind & 2) != 0;
  if (closed)
    config.admission = {identity(2).public_key(), certificate(0)};
  const std::array<Buffer, 2> shown{closed ? certificate(1) : Buffer{}, Buffer{}};
  if (kind % 2 != 0) // in its second life
    config.state.contacts = {{dht::Contact::make(identity(2).public_key(), {}, addresses[1])}};
  dht::Node node(config, identity(0), cipher, rng);
  Time now = 0;
  WallMs wall = kWall;
  std::array<Buffer, 2> last_sent;
  std::array<std::optional<dht::Token>, 2> tokens;
  std::vector<dht::ListenId> listens;
  size_t steps = 0;
  while (!script.left.empty() && ++steps < 200) {
    const uint8_t action = script.byte();
    const size_t who = action & 1;
    Buffer datagram;
    switch (action >> 1 & 15) {
    case 0:
    case 1:
      if (const auto sealed = peers[who].seal(identity(0).public_key(), script.bytes()))
        datagram = *sealed;
      break;
    case 2:
    case 3:
      datagram = answer_to(peers[who], last_sent[who], shown[who], script);
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
    case 8: {
      const auto peer = who + 1;
      const dht::Contact other =
          dht::Contact::make(identity(3 - peer).public_key(), {}, addresses[1 - who]);
      const dht::Header header{steps, (action & 128) != 0, {}, tokens[who], wall, shown[who]};
      if (const auto sealed =
              peers[who].seal(identity(0).public_key(),
                              dht::encode(header, request_of(identity(peer), other, wall, script))))
        datagram = *sealed;
      break;
    }
    case 9:
      if (const auto listen =
              node.start_listen(dht::Id{{script.byte(), 0, 0, 0}}, [](const auto&) {}))
        listens.push_back(*listen);
      break;
    case 10:
      if (!listens.empty()) {
        node.stop_listen(listens.back());
        listens.pop_back();
      }
      break;
    case 11:
      node.start_get_many(
          now, node.wall(), {dht::Id{{script.byte(), 0, 0, 0}}, dht::Id{{script.byte(), 0, 0, 0}}},
          now + 5 * kSecond, [](const auto&) {}, dht::Consistency::kQuorum);
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
        if (sent.to == addresses[peer]) {
          last_sent[peer] = sent.bytes;
          if (const auto token = token_in(peers[peer], sent.bytes))
            tokens[peer] = token;
        }
    }
  }
  if (node.table().size() > 2 || node.storage().bytes() > Limits::kStoredBytes)
    std::abort(); // only the two who can answer may be in the table
  if (closed && node.table().contains(dht::node_id(identity(2).public_key(), {})))
    std::abort(); // it has no certificate
  if (!dht::decode_state(dht::encode_state(node.save_state())))
    std::abort();
  node.abandon();
  return 0;
}
