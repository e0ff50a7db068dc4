// The run's owner says who may take part.
#pragma once

#include "base/limits.hpp"
#include "base/time.hpp"
#include "crypto/identity.hpp"

namespace lah::crypto {

// For one node's key, until it expires. The key is not part of it: whoever shows it proves that key
// anyway.
struct Certificate {
  WallMs expiry_ms = 0;
  Signature signature{};
};

// Ed25519 over "lah-cert-1", the network id and its length, the node's key and the expiry.
Certificate issue_certificate(const Identity& owner, std::string_view network_id,
                              const PublicKey& node, WallMs expiry_ms);
// The signature alone; the expiry is the caller's to compare with its clock.
bool verify_certificate(const PublicKey& owner, std::string_view network_id, const PublicKey& node,
                        const Certificate& certificate);

// Limits::kCertificateBytes: the expiry, most significant byte first, then the signature.
Buffer encode_certificate(const Certificate& certificate);
Result<Certificate> decode_certificate(ByteView data);

} // namespace lah::crypto
