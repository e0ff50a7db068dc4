// Any datagram as the outer packet of the DHT and of HELLO: refused, or within the bytes given; an
// address and a contact likewise.
#include <cstdlib>

#include "allocation_budget.hpp"
#include "crypto/sealed_packet.hpp"
#include "dht/contact.hpp"

using namespace lah;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const ByteView bytes = std::as_bytes(std::span(data, size));
  if (const auto packet = crypto::parse_packet(bytes)) {
    if (packet->body.size() > size)
      std::abort();
    SeededRng rng(1);
    static const crypto::Identity identity = crypto::Identity::generate(rng);
    crypto::PacketSealer sealer(identity, "fuzz", rng);
    if (packet->kind == crypto::PacketKind::kSealed && sealer.open(*packet))
      std::abort(); // nobody sealed it
    if (packet->kind == crypto::PacketKind::kHello && sealer.hello_reply(*packet).size() > size)
      std::abort(); // a HELLO must not amplify
    if (packet->kind == crypto::PacketKind::kHelloReply)
      static_cast<void>(sealer.accept_hello_reply(*packet, packet->nonce));
  }
  const fuzz::AllocationBudget budget(size);
  static_cast<void>(dht::decode_contact(bytes));
  static_cast<void>(dht::decode_endpoint(bytes));
  static_cast<void>(Endpoint::parse(as_text(bytes), 1));
  return 0;
}
