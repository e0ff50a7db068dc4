#include "dht/admission.hpp"

namespace lah::dht {
namespace {

// Verifying costs 40 us: who showed a bad certificate has to wait before the next one is read.
constexpr uint64_t kRefusedMs = 2000;

// Makes room for one more: what has run out goes first, then whatever is first in order.
void make_room(std::map<PublicKey, WallMs>& until, WallMs wall) {
  if (until.size() < Limits::kAdmittedKeys)
    return;
  std::erase_if(until, [&](const auto& entry) { return entry.second <= wall; });
  if (until.size() >= Limits::kAdmittedKeys)
    until.erase(until.begin());
}

} // namespace

bool Admission::knows(const PublicKey& key, WallMs wall) const {
  if (is_open())
    return true;
  const auto found = admitted_.find(key);
  return found != admitted_.end() && found->second > wall;
}

bool Admission::admits(const PublicKey& key, ByteView shown, WallMs wall) {
  if (is_open())
    return true;
  const auto certificate = crypto::decode_certificate(shown);
  if (!certificate)
    return knows(key, wall);
  const auto found = admitted_.find(key);
  const WallMs known_until = found == admitted_.end() ? 0 : found->second;
  if (certificate->expiry_ms <= known_until || !is_valid(key, *certificate, wall))
    return known_until > wall;
  make_room(admitted_, wall);
  admitted_[key] = certificate->expiry_ms;
  return true;
}

bool Admission::is_valid(const PublicKey& key, const crypto::Certificate& certificate,
                         WallMs wall) {
  if (certificate.expiry_ms <= wall)
    return false;
  const auto refused = refused_.find(key);
  if (refused != refused_.end() && refused->second > wall)
    return false;
  if (crypto::verify_certificate(*policy_.owner, network_id_, key, certificate))
    return true;
  make_room(refused_, wall);
  refused_[key] = wall + kRefusedMs;
  return false;
}

} // namespace lah::dht
