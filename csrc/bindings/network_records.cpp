#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/network.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

dht::Id user_key(const py::bytes& name) {
  return dht::record_key("lah-user-1", as_bytes(std::string_view(name)));
}

py::object newest_first(std::vector<dht::Record> found) {
  std::erase_if(found, [](const auto& record) { return record.is_tombstone(); });
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.seq > b.seq; });
  py::list records;
  for (const dht::Record& record : found)
    records.append(py::make_tuple(
        to_bytes(record.owner),
        py::bytes(reinterpret_cast<const char*>(record.payload.data()), record.payload.size())));
  return records;
}

dht::Consistency consistency_from(const std::string& name) {
  if (name == "first")
    return dht::Consistency::kFirst;
  if (name == "quorum")
    return dht::Consistency::kQuorum;
  if (name == "all")
    return dht::Consistency::kAll;
  raise_error({ErrorCode::kInvalidArgument,
               "consistency: expected 'first', 'quorum' or 'all', got '" + name + "'"});
}

void check_value(std::string_view value, double expiration) {
  if (value.empty() || value.size() > Limits::kRecordPayloadBytes)
    raise_error({ErrorCode::kInvalidArgument, "value: expected 1 to " +
                                                  std::to_string(Limits::kRecordPayloadBytes) +
                                                  " bytes, got " + std::to_string(value.size())});
  if (!(expiration > 0) || expiration * 1e3 > double{Limits::kRecordLifetimeMs})
    raise_error(
        {ErrorCode::kInvalidArgument, "expiration: expected seconds above 0 and at most 600, got " +
                                          std::to_string(expiration)});
}

} // namespace

std::shared_ptr<Answer> Network::get(const py::bytes& name, const std::string& consistency,
                                     double timeout) {
  const Duration allowed = seconds(timeout);
  auto answer = open<dht::GetResult>("get", allowed, [](dht::GetResult&& result) {
    return newest_first(std::move(result.records));
  });
  post([=, key = user_key(name), enough = consistency_from(consistency)](auto& core, Time now,
                                                                         WallMs wall) {
    core.node.start_get(
        now, wall, key, now + allowed,
        [answer](dht::GetResult result) { answer->set(std::move(result)); }, enough);
  });
  return answer;
}

std::shared_ptr<Answer> Network::store(const py::bytes& name, const py::bytes& value,
                                       double expiration, double timeout) {
  const std::string_view text = value;
  check_value(text, expiration);
  const Duration allowed = seconds(timeout);
  const auto lifetime_ms = static_cast<uint64_t>(expiration * 1e3);
  const ByteView bytes = as_bytes(text);
  auto answer = open<size_t>("store", allowed, [](size_t copies) { return py::int_(copies); });
  post([this, answer, allowed, lifetime_ms, key = user_key(name),
        payload = Buffer(bytes.begin(), bytes.end())](auto& core, Time now, WallMs wall) {
    last_seq_ = std::max(last_seq_ + 1, core.node.next_seq());
    core.node.start_store(
        now, wall, core.node.sign(key, last_seq_, wall + lifetime_ms, payload), now + allowed,
        [answer](const dht::StoreResult& result) { answer->set(result.replicas + 1); });
  });
  return answer;
}

} // namespace lah::bindings
