#include "dht/prefix_reader.hpp"

#include <algorithm>

namespace lah::dht {

// --- ServerBook ----------------------------------------------------------------------------------

const ServerRecord* ServerBook::find(const PublicKey& owner, uint64_t boot_id) const {
  const auto found = known_.find(owner);
  return found == known_.end() || found->second.server.boot_id != boot_id ? nullptr
                                                                          : &found->second.server;
}

void ServerBook::fetch(const PublicKey& owner, Time deadline, std::function<void()> done) {
  node_.start_get(node_.time(), node_.wall(), server_key(owner), deadline,
                  [this, owner, done = std::move(done)](const GetResult& result) {
                    learn(owner, result);
                    done();
                  });
}

void ServerBook::learn(const PublicKey& owner, const GetResult& result) {
  for (const Record& record : result.records) {
    if (record.owner != owner) // anybody may sign a record under this key; only the owner counts
      continue;
    const auto server = decode_server(record.payload);
    const auto known = known_.find(owner);
    if (!server || (known != known_.end() && known->second.seq >= record.seq))
      continue;
    if (known_.size() >= Limits::kRecordsPerKey && known == known_.end())
      known_.clear(); // one lookup brings each of them back
    known_.insert_or_assign(owner, Known{*server, record.seq});
  }
}

// --- PrefixReader --------------------------------------------------------------------------------

const PrefixReader::OwnedPart* PrefixReader::Owner::first() const {
  const auto part = parts.find(0);
  return part == parts.end() ? nullptr : &part->second;
}

void PrefixReader::refresh(Time, WallMs, Time deadline, std::function<void()> done) {
  waiting_.push_back(std::move(done));
  if (refreshing())
    return;
  deadline_ = deadline;
  open_ = 1;
  get_part(0);
}

void PrefixReader::get_part(uint32_t part) {
  node_.start_get(node_.time(), node_.wall(), declaration_key(prefix_, part), deadline_,
                  [this, part](const GetResult& result) { on_part(part, result); });
}

void PrefixReader::on_part(uint32_t part, const GetResult& result) {
  for (const Record& record : result.records) {
    OwnedPart& held = owners_[record.owner].parts[part];
    if (held.seq >= record.seq)
      continue;
    const auto declaration = decode_declaration(record.payload);
    held = {record.seq, record.expiry_ms, declaration ? *declaration : Declaration{}};
  }
  expire(node_.wall());
  if (part == 0) {
    uint32_t parts = 1;
    for (const auto& [key, owner] : owners_)
      if (const OwnedPart* first = owner.first())
        parts = std::max(parts, first->declaration.parts);
    open_ += parts - 1;
    for (uint32_t next = 1; next < parts; ++next)
      get_part(next);
    std::vector<PublicKey> strangers;
    for (const auto& [key, owner] : owners_)
      if (const OwnedPart* first = owner.first(); first && !first->declaration.groups.empty() &&
                                                  !servers_.find(key, first->declaration.boot_id))
        strangers.push_back(key);
    open_ += strangers.size();
    for (const PublicKey& stranger : strangers)
      servers_.fetch(stranger, deadline_, [this] { finish_one(); });
  }
  finish_one();
}

void PrefixReader::finish_one() {
  if (--open_ > 0)
    return;
  refreshed_at_ = node_.time();
  for (const auto& done : std::exchange(waiting_, {}))
    done();
}

void PrefixReader::expire(WallMs wall) {
  for (auto owner = owners_.begin(); owner != owners_.end();) {
    std::erase_if(owner->second.parts,
                  [&](const auto& part) { return part.second.expiry_ms <= wall; });
    owner = owner->second.parts.empty() ? owners_.erase(owner) : std::next(owner);
  }
}

WallMs PrefixReader::next_expiry() const {
  WallMs next = UINT64_MAX;
  for (const auto& [key, owner] : owners_)
    for (const auto& [index, part] : owner.parts)
      next = std::min(next, part.expiry_ms);
  return next;
}

} // namespace lah::dht
