#include <pybind11/stl.h>

#include "bindings/network.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

dht::Id user_key(std::string_view name) {
  return dht::record_key("lah-user-1", as_bytes(name));
}

Buffer buffer_from(std::string_view text) {
  const ByteView bytes = as_bytes(text);
  return {bytes.begin(), bytes.end()};
}

void check_count(const char* argument, size_t count) {
  if (count > Limits::kNamesPerCall)
    raise_error({ErrorCode::kInvalidArgument,
                 std::string(argument) + ": at most " + std::to_string(Limits::kNamesPerCall) +
                     " names go into one call, got " + std::to_string(count)});
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
                                     double max_age, double timeout) {
  const Duration allowed = seconds(timeout);
  auto answer = open<dht::GetResult>("get", allowed, [](dht::GetResult&& result) {
    return newest_first(std::move(result.records));
  });
  post([=, key = user_key(name), enough = consistency_from(consistency),
        age = seconds(max_age)](auto& core, Time now, WallMs wall) {
    core.node.start_get(
        now, wall, key, now + allowed,
        [answer](dht::GetResult result) { answer->set(std::move(result)); }, enough, age);
  });
  return answer;
}

std::shared_ptr<Answer> Network::get_many(const std::vector<pybind11::bytes>& names,
                                          const std::string& consistency, double max_age,
                                          double timeout) {
  using Results = std::vector<dht::GetResult>;
  check_count("names", names.size());
  const Duration allowed = seconds(timeout);
  auto answer = open<Results>("get_many", allowed, [](Results&& results) {
    py::list found;
    for (dht::GetResult& result : results)
      found.append(newest_first(std::move(result.records)));
    return found;
  });
  std::vector<dht::Id> keys;
  for (const py::bytes& name : names)
    keys.push_back(user_key(name));
  post([=, keys = std::move(keys), enough = consistency_from(consistency),
        age = seconds(max_age)](auto& core, Time now, WallMs wall) {
    core.node.start_get_many(
        now, wall, keys, now + allowed,
        [answer](Results results) { answer->set(std::move(results)); }, enough, age);
  });
  return answer;
}

std::shared_ptr<Answer> Network::store(const py::bytes& name, const py::bytes& value,
                                       double expiration, double timeout) {
  const std::string_view text = value;
  check_value(text, expiration);
  const Duration allowed = seconds(timeout);
  const auto lifetime_ms = static_cast<uint64_t>(expiration * 1e3);
  auto answer = open<size_t>("store", allowed, [](size_t copies) { return py::int_(copies); });
  post([=, this, key = user_key(name), payload = buffer_from(text)](auto& core, Time now,
                                                                    WallMs wall) {
    core.node.start_store(
        now, wall, core.node.sign(key, next_seq(core.node), wall + lifetime_ms, payload),
        now + allowed,
        [answer](const dht::StoreResult& result) { answer->set(result.replicas + 1); });
  });
  return answer;
}

std::shared_ptr<Answer>
Network::store_many(const std::vector<std::pair<pybind11::bytes, pybind11::bytes>>& values,
                    double expiration, double timeout) {
  using Results = std::vector<dht::StoreResult>;
  check_count("values", values.size());
  std::vector<std::pair<dht::Id, Buffer>> payloads;
  for (const auto& [name, value] : values) {
    check_value(value, expiration);
    payloads.emplace_back(user_key(name), buffer_from(value));
  }
  const Duration allowed = seconds(timeout);
  const auto lifetime_ms = static_cast<uint64_t>(expiration * 1e3);
  auto answer = open<Results>("store_many", allowed, [](Results&& results) {
    py::list copies;
    for (const dht::StoreResult& result : results)
      copies.append(result.replicas + 1);
    return copies;
  });
  post([=, this, payloads = std::move(payloads)](auto& core, Time now, WallMs wall) {
    std::vector<dht::Record> records;
    for (const auto& [key, payload] : payloads)
      records.push_back(core.node.sign(key, next_seq(core.node), wall + lifetime_ms, payload));
    core.node.start_store_many(now, wall, std::move(records), now + allowed,
                               [answer](Results results) { answer->set(std::move(results)); });
  });
  return answer;
}

void Network::listen(const py::bytes& name, std::shared_ptr<Listener> listener) {
  const uint64_t ticket = listener->ticket();
  bool listens = false;
  run([&, key = user_key(name)](auto& core, Time, WallMs) {
    const auto [entry, added] = core.listeners.try_emplace(
        ticket, core.node, key, [listener](auto values) { listener->tell(std::move(values)); });
    listens = entry->second.listens();
    if (!listens)
      core.listeners.erase(entry);
  });
  if (!listens)
    raise_error({ErrorCode::kOverloaded, "listen: this network listens to " +
                                             std::to_string(Limits::kSubscriptions) +
                                             " names and grids already; close some listeners"});
}

void Network::stop_listening(const Listener& listener) {
  if (getpid() != owner_ || closed())
    return;
  run([ticket = listener.ticket()](auto& core, Time, WallMs) { core.listeners.erase(ticket); });
}

} // namespace lah::bindings
