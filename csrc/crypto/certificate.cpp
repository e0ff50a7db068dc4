#include "crypto/certificate.hpp"

namespace lah::crypto {
namespace {

void append_u64(Buffer& out, uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8)
    out.push_back(static_cast<std::byte>(value >> shift & 0xff));
}

Buffer statement(std::string_view network_id, const PublicKey& node, WallMs expiry_ms) {
  Buffer out;
  append(out, as_bytes("lah-cert-1"));
  append_u64(out, network_id.size());
  append(out, as_bytes(network_id));
  append(out, as_bytes(node));
  append_u64(out, expiry_ms);
  return out;
}

} // namespace

Certificate issue_certificate(const Identity& owner, std::string_view network_id,
                              const PublicKey& node, WallMs expiry_ms) {
  return {expiry_ms, owner.sign(statement(network_id, node, expiry_ms))};
}

bool verify_certificate(const PublicKey& owner, std::string_view network_id, const PublicKey& node,
                        const Certificate& certificate) {
  return verify(owner, statement(network_id, node, certificate.expiry_ms), certificate.signature);
}

Buffer encode_certificate(const Certificate& certificate) {
  Buffer out;
  append_u64(out, certificate.expiry_ms);
  append(out, as_bytes(certificate.signature));
  return out;
}

Result<Certificate> decode_certificate(ByteView data) {
  if (data.size() != Limits::kCertificateBytes)
    return Error{ErrorCode::kProtocol, "certificate of a wrong length"};
  Certificate certificate;
  for (size_t i = 0; i < 8; ++i)
    certificate.expiry_ms = certificate.expiry_ms << 8 | std::to_integer<uint64_t>(data[i]);
  std::memcpy(certificate.signature.data(), data.data() + 8, certificate.signature.size());
  return certificate;
}

} // namespace lah::crypto
