#include "bindings/declarations.hpp"

#include "bindings/network_support.hpp"

namespace lah::bindings {

std::vector<dht::ExpertUid> parse_uids(const std::vector<std::string>& uids, const char* argument) {
  if (uids.size() > Limits::kDeclaredExperts)
    raise_error({ErrorCode::kInvalidArgument,
                 std::string(argument) + ": at most " + std::to_string(Limits::kDeclaredExperts) +
                     " are allowed, got " + std::to_string(uids.size())});
  std::vector<dht::ExpertUid> parsed;
  for (const std::string& uid : uids) {
    Result<dht::ExpertUid> one = dht::parse_uid(uid);
    if (!one)
      raise_error({one.error().code, std::string(argument) + ": " + one.error().message});
    parsed.push_back(std::move(*one));
  }
  return parsed;
}

dht::Declarer::Served served_from(const std::vector<std::string>& uids,
                                  const std::vector<uint64_t>& schema_hashes,
                                  const std::vector<std::string>& addresses, int tcp_port,
                                  uint64_t boot_id, double period, double expiry,
                                  std::optional<uint64_t> grid_cells) {
  if (schema_hashes.size() != uids.size())
    raise_error({ErrorCode::kInvalidArgument, "schema_hashes: expected one for each of " +
                                                  std::to_string(uids.size()) + " uids, got " +
                                                  std::to_string(schema_hashes.size())});
  if (tcp_port < 1)
    raise_error({ErrorCode::kInvalidArgument,
                 "port: expected 1 to 65535, got " + std::to_string(tcp_port)});
  if (addresses.size() > Limits::kNodeAddresses)
    raise_error({ErrorCode::kInvalidArgument,
                 "addresses: at most " + std::to_string(Limits::kNodeAddresses) + " are allowed"});
  if (!(period >= 0.01) || !(expiry > period) || expiry * 1e3 > double{Limits::kRecordLifetimeMs})
    raise_error({ErrorCode::kInvalidArgument,
                 "update_period, expiration: expected 0.01 <= period < expiration <= 600 "
                 "seconds, got " +
                     std::to_string(period) + " and " + std::to_string(expiry)});
  dht::Declarer::Served served;
  const std::vector<dht::ExpertUid> parsed = parse_uids(uids, "uids");
  for (size_t i = 0; i < parsed.size(); ++i)
    served.experts.push_back({parsed[i], schema_hashes[i]});
  for (const std::string& address : addresses)
    served.addresses.push_back(endpoint_from(address, tcp_port, "addresses"));
  served.tcp_port = static_cast<uint16_t>(tcp_port);
  served.boot_id = boot_id;
  served.version = "1";
  served.period = seconds(period);
  served.expiry_ms = static_cast<uint64_t>(expiry * 1e3);
  served.grid_cells = grid_cells;
  return served;
}

} // namespace lah::bindings
