#pragma once

#include <vector>

#include "base/endpoint.hpp"

namespace lah::net {

// The addresses of this machine's interfaces, each with this port. Empty if they cannot be listed.
std::vector<Endpoint> local_addresses(uint16_t port);

} // namespace lah::net
