// Endpoints as the system's calls take them.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include "base/endpoint.hpp"

namespace lah::net {

// Fills `out` for a socket of that family and returns its size.
socklen_t to_sockaddr(const Endpoint& endpoint, bool v6, sockaddr_storage& out);
Endpoint from_sockaddr(const sockaddr_storage& in);

} // namespace lah::net
