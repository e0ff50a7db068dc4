// What a node keeps over a restart: contacts to come back through, its own records, how far its
// sequence numbers got, and, where asked for, its key.
#pragma once

#include <optional>

#include "dht/contact.hpp"
#include "dht/record.hpp"

namespace lah::dht {

struct NodeState {
  struct Known {
    Contact contact;
    Duration rtt = -1; // smoothed; negative if unknown
    bool operator==(const Known&) const = default;
  };

  std::optional<std::array<uint8_t, 32>> identity_seed;
  std::string network_id;
  std::vector<Known> contacts; // best first, at most Limits::kSavedContacts
  std::vector<Record> records; // of the node itself, at most Limits::kSavedRecords
  uint64_t seq = 0;            // no record of a higher one was signed
};

// `magic, version, SHA-256 of the rest`, then msgpack documents, each after its length: a head,
// then contacts and records in any order. The sum guards against damage, not against an attacker:
// who can write the file owns the node's key.
Buffer encode_state(const NodeState& state);

// Bounded, and complete or an error that says what is wrong: nothing is taken from a damaged file.
Result<NodeState> decode_state(ByteView file);

} // namespace lah::dht
