#pragma once

#include <string>
#include <vector>

#include "dht/declarer.hpp"

namespace lah::bindings {

// Raises InvalidArgument naming the argument and the uid.
std::vector<dht::ExpertUid> parse_uids(const std::vector<std::string>& uids, const char* argument);

// The arguments of Network.declare(), checked. `period` and `expiry` in seconds.
dht::Declarer::Served served_from(const std::vector<std::string>& uids,
                                  const std::vector<uint64_t>& schema_hashes,
                                  const std::vector<std::string>& addresses, int tcp_port,
                                  uint64_t boot_id, double period, double expiry,
                                  std::optional<uint64_t> grid_cells);

} // namespace lah::bindings
