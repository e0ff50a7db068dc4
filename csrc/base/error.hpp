// Errors are values: on the wire, between layers, and in Python (learning_at_home/errors.py maps
// each code to a class).
#pragma once

#include <cstdint>
#include <string>

namespace lah {

enum class ErrorCode : uint8_t {
  kNone = 0,
  kExpertNotFound = 1,   // the server does not serve this uid
  kSchemaMismatch = 2,   // tensor count, dtype, shape or row count differ from the expert's schema
  kExpertError = 3,      // the expert's own code raised; detail holds the remote traceback's text
  kOverloaded = 4,       // queue or memory budget full; retry_after_ms says when to come back
  kDeadlineExceeded = 5, // no complete answer in time
  kPeerUnreachable = 6,  // never connected, or silent for longer than its liveness timeout
  kCancelled = 7,        // the caller gave up
  kProtocol = 8,         // a frame that no correct peer sends
  kShuttingDown = 9,     // the server or the client is closing
  kInvalidArgument = 10, // the local caller's mistake
  kNotFound = 11,        // the DHT holds no such record
  kRejected = 12,        // the request's numbers: NaN, infinite, or a norm above the expert's limit
  kNotPermitted = 13,    // the server does not do this for this caller
};
inline constexpr uint64_t kErrorCodes = 13; // the highest

const char* error_name(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kNone;
  std::string message = {};
  std::string detail = {}; // remote traceback text
  uint32_t retry_after_ms = 0;
};

} // namespace lah
