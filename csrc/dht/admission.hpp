#pragma once

#include <map>
#include <optional>
#include <string>

#include "crypto/certificate.hpp"
#include "dht/id.hpp"

namespace lah::dht {

// Who may take part in a network, and what this node shows to be let in.
struct AdmissionPolicy {
  std::optional<PublicKey> owner = {}; // whose certificates count; none: everybody may
  Buffer certificate = {};             // our own, encoded; empty in an open network
};

// Checks certificates, and remembers who was admitted until when: a certificate travels only while
// its receiver may not know it, and is verified once.
//
// In an open network everybody is admitted; what strangers can do there is bounded by
// NewcomerGate, by subnets in tables and results, and by the quotas of Storage.
class Admission {
public:
  Admission(AdmissionPolicy policy, std::string_view network_id)
      : policy_(std::move(policy)), network_id_(network_id) {}

  bool is_open() const { return !policy_.owner; }
  // Our own; empty in an open network.
  const Buffer& certificate() const { return policy_.certificate; }
  // A later certificate of ours.
  void renew(Buffer certificate) { policy_.certificate = std::move(certificate); }

  // Whether the owner of this key may take part. `shown`: the certificate that came along, if any.
  bool admits(const PublicKey& key, ByteView shown, WallMs wall);
  // Whether it may by what it showed before.
  bool knows(const PublicKey& key, WallMs wall) const;
  size_t remembered() const { return admitted_.size(); }

private:
  bool is_valid(const PublicKey& key, const crypto::Certificate& certificate, WallMs wall);

  AdmissionPolicy policy_;
  std::string network_id_;
  std::map<PublicKey, WallMs> admitted_; // until when
  std::map<PublicKey, WallMs> refused_;  // until when nothing of theirs is verified again
};

} // namespace lah::dht
