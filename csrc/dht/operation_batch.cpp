#include "dht/operation_batch.hpp"

#include <algorithm>
#include <tuple>

#include "crypto/sealed_packet.hpp"

namespace lah::dht {
namespace {

size_t wire_bytes(const StoreRequest& store) {
  size_t bytes = kStoreWireBytes;
  for (const Record& record : store.records)
    bytes += record_wire_bytes(record) + kStoredKeyWireBytes;
  return bytes;
}

bool merge_finds(FindRequest& find, const FindRequest& more) {
  if (find.want_records != more.want_records ||
      find.keys.size() + more.keys.size() > Limits::kFindKeys)
    return false;
  find.keys.insert(find.keys.end(), more.keys.begin(), more.keys.end());
  return true;
}

bool merge_stores(StoreRequest& store, const StoreRequest& more) {
  if (store.records.size() + more.records.size() > Limits::kStoreBatch ||
      wire_bytes(store) + wire_bytes(more) - kStoreWireBytes >
          Limits::kDatagramBytes - crypto::kPacketOverhead - Limits::kCertificateBytes)
    return false;
  store.records.insert(store.records.end(), more.records.begin(), more.records.end());
  return true;
}

// What one of the `count` parts of a merged request got; an error if the reply is not for so many.
Reply share_of(const Reply& reply, size_t index, size_t count) {
  if (const auto* find = std::get_if<FindReply>(&reply); find && find->entries.size() == count)
    return FindReply{find->observed, {find->entries[index]}};
  if (const auto* store = std::get_if<StoreReply>(&reply); store && store->outcomes.size() == count)
    return StoreReply{{store->outcomes[index]}};
  const auto* error = std::get_if<ErrorReply>(&reply);
  return error != nullptr ? *error : ErrorReply{ErrorCode::kProtocol};
}

} // namespace

bool merge(Request& request, const Request& more) {
  auto* find = std::get_if<FindRequest>(&request);
  const auto* more_find = std::get_if<FindRequest>(&more);
  if (find != nullptr && more_find != nullptr)
    return merge_finds(*find, *more_find);
  auto* store = std::get_if<StoreRequest>(&request);
  const auto* more_store = std::get_if<StoreRequest>(&more);
  return store != nullptr && more_store != nullptr && merge_stores(*store, *more_store);
}

void OperationBatch::set_parts(std::vector<std::unique_ptr<Operation>> parts) {
  parts_ = std::move(parts);
  left_ = alive_ = parts_.size();
  for (size_t part = 0; part < parts_.size(); ++part)
    parts_[part]->id = part;
}

std::optional<Id> OperationBatch::target() const {
  for (const auto& part : parts_)
    if (const auto target = part ? part->target() : std::nullopt)
      return target;
  return std::nullopt;
}

void OperationBatch::start(OperationHost& host, const std::vector<Contact>&) {
  host_ = &host;
  started_ = true;
  pump();
}

void OperationBatch::on_answer(OperationHost& host, const SentRequest& request,
                               const Header& header, const Reply& reply) {
  host_ = &host;
  const std::vector<size_t> parts = take_sent(request.txid);
  for (size_t i = 0; i < parts.size(); ++i)
    answer_part(parts[i], request, header,
                parts.size() == 1 ? reply : share_of(reply, i, parts.size()));
  pump();
}

void OperationBatch::answer_part(size_t part, const SentRequest& request, const Header& header,
                                 const Reply& reply) {
  if (parts_[part])
    parts_[part]->on_answer(*this, request, header, reply);
  retire_if_finished(part);
}

void OperationBatch::on_overdue(OperationHost& host, const SentRequest& request) {
  host_ = &host;
  if (const auto sent = sent_.find(request.txid); sent != sent_.end())
    for (const size_t part : sent->second) {
      if (parts_[part])
        parts_[part]->on_overdue(*this, request);
      retire_if_finished(part);
    }
  pump();
}

void OperationBatch::on_lapsed(OperationHost& host, const SentRequest& request) {
  host_ = &host;
  if (const auto sent = sent_.find(request.txid); sent != sent_.end())
    for (const size_t part : sent->second) {
      if (parts_[part])
        parts_[part]->on_lapsed(*this, request);
      retire_if_finished(part);
    }
  pump();
}

void OperationBatch::on_failed(OperationHost& host, const SentRequest& request) {
  host_ = &host;
  for (const size_t part : take_sent(request.txid)) {
    if (parts_[part])
      parts_[part]->on_failed(*this, request);
    retire_if_finished(part);
  }
  pump();
}

void OperationBatch::complete(OperationHost& host) {
  host_ = &host;
  for (auto& part : parts_)
    if (part && !std::exchange(part->told, true))
      part->complete(*this);
  on_completed();
}

uint64_t OperationBatch::request(OpId part, const Contact& to, Request body) {
  queued_.push_back({part, to, std::move(body)});
  return 0; // known only once it is sent, and no part asks
}

std::vector<size_t> OperationBatch::take_sent(uint64_t txid) {
  const auto sent = sent_.find(txid);
  if (sent == sent_.end())
    return {};
  std::vector<size_t> parts = std::move(sent->second);
  sent_.erase(sent);
  return parts;
}

void OperationBatch::retire_if_finished(size_t part) {
  auto& operation = parts_[part];
  if (!operation || !(operation->told || operation->finished()))
    return;
  if (!operation->told) {
    operation->complete(*this);
    operation->told = true;
    --left_;
  }
  if (operation->lingers())
    return;
  operation.reset();
  --alive_;
}

void OperationBatch::pump() {
  send_queued();
  while (next_ < parts_.size() && sent_.size() < Limits::kBatchRequests) {
    start_parts();
    send_queued();
  }
}

void OperationBatch::start_parts() {
  const size_t end = std::min(parts_.size(), next_ + Limits::kFindKeys);
  for (; next_ < end; ++next_) {
    const auto target = parts_[next_]->target();
    parts_[next_]->start(*this, target ? host_->closest(*target) : std::vector<Contact>{});
    retire_if_finished(next_);
  }
}

void OperationBatch::send_queued() {
  std::vector<Queued> queued = std::exchange(queued_, {});
  std::stable_sort(queued.begin(), queued.end(), [](const Queued& a, const Queued& b) {
    return std::tie(a.to.id, a.to.endpoint) < std::tie(b.to.id, b.to.endpoint);
  });
  for (size_t i = 0; i < queued.size();) {
    Queued& first = queued[i];
    std::vector<size_t> parts{first.part};
    for (++i; i < queued.size() && queued[i].to == first.to && merge(first.body, queued[i].body);
         ++i)
      parts.push_back(queued[i].part);
    sent_.emplace(host_->request(id, first.to, std::move(first.body)), std::move(parts));
  }
}

} // namespace lah::dht
