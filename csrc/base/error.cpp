#include "base/error.hpp"

namespace lah {

const char* error_name(ErrorCode code) {
  switch (code) {
  case ErrorCode::kNone:
    return "None";
  case ErrorCode::kExpertNotFound:
    return "ExpertNotFound";
  case ErrorCode::kSchemaMismatch:
    return "SchemaMismatch";
  case ErrorCode::kExpertError:
    return "ExpertError";
  case ErrorCode::kOverloaded:
    return "Overloaded";
  case ErrorCode::kDeadlineExceeded:
    return "DeadlineExceeded";
  case ErrorCode::kPeerUnreachable:
    return "PeerUnreachable";
  case ErrorCode::kCancelled:
    return "Cancelled";
  case ErrorCode::kProtocol:
    return "ProtocolError";
  case ErrorCode::kShuttingDown:
    return "ShuttingDown";
  case ErrorCode::kInvalidArgument:
    return "InvalidArgument";
  case ErrorCode::kNotFound:
    return "NotFound";
  case ErrorCode::kRejected:
    return "Rejected";
  case ErrorCode::kNotPermitted:
    return "NotPermitted";
  }
  return "Unknown";
}

} // namespace lah
