#include "dht/prefix_reader.hpp"

#include <algorithm>

namespace lah::dht {

const PrefixReader::OwnedPart* PrefixReader::Owner::first() const {
  const auto part = parts.find(0);
  return part == parts.end() ? nullptr : &part->second;
}

void PrefixReader::learn(uint32_t part, const Record& record) {
  OwnedPart& held = owners_[record.owner].parts[part];
  if (held.seq >= record.seq)
    return;
  const auto declaration = decode_declaration(record.payload);
  held = {record.seq, record.expiry_ms, declaration ? *declaration : Declaration{}};
}

uint32_t PrefixReader::parts() const {
  uint32_t most = 1;
  for (const auto& [key, owner] : owners_)
    if (const OwnedPart* first = owner.first())
      most = std::max(most, first->declaration.parts);
  return most;
}

// --- listening -----------------------------------------------------------------------------------

void PrefixReader::listen(std::function<void()> on_change) {
  on_change_ = std::move(on_change);
  if (parts_.empty())
    listen_to_parts();
}

void PrefixReader::ignore() {
  for (const auto& [number, part] : std::exchange(parts_, {}))
    if (part.listen)
      node_.stop_listen(*part.listen);
  on_change_ = nullptr;
  complete_ = false;
}

void PrefixReader::listen_to_parts() {
  const uint32_t wanted = parts();
  for (uint32_t number = 0; number < wanted; ++number) {
    if (parts_.contains(number))
      continue;
    Part& part = parts_[number];
    part.listen =
        node_.start_listen(declaration_key(prefix_, number),
                           [this, number](const ListenEvent& event) { on_event(number, event); });
    part.told = !part.listen;
  }
}

void PrefixReader::on_event(uint32_t number, const ListenEvent& event) {
  for (const Record& record : event.changed)
    learn(number, record);
  for (const Record& record : event.refreshed) {
    OwnedPart& held = owners_[record.owner].parts[number];
    held.seq = std::max(held.seq, record.seq);
    held.expiry_ms = std::max(held.expiry_ms, record.expiry_ms);
  }
  parts_[number].told = true;
  if (number == 0)
    listen_to_parts();
  if (!complete_)
    complete_ = std::all_of(parts_.begin(), parts_.end(),
                            [](const auto& part) { return part.second.told; });
  if (complete_ && (event.first || !event.changed.empty()))
    on_change_();
}

// --- asking --------------------------------------------------------------------------------------

void PrefixReader::refresh(Time deadline, std::function<void()> done) {
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
  for (const Record& record : result.records)
    learn(part, record);
  expire(node_.wall());
  if (part == 0) {
    const uint32_t wanted = parts();
    open_ += wanted - 1;
    for (uint32_t next = 1; next < wanted; ++next)
      get_part(next);
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
