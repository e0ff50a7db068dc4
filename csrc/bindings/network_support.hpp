// What the bindings of the network share: arguments, results, signals.
#pragma once

#include <pybind11/pybind11.h>

#include "base/endpoint.hpp"
#include "bindings/core.hpp"
#include "net/system.hpp"

namespace lah::bindings {

inline constexpr const char* kNetworkId = "learning_at_home";
inline constexpr Duration kSignalSlice = 50 * kMillisecond; // how long Ctrl-C may have to wait

inline pybind11::bytes to_bytes(const std::array<uint8_t, 32>& key) {
  return {reinterpret_cast<const char*>(key.data()), key.size()};
}

inline Buffer to_buffer(const pybind11::bytes& data) {
  const std::string_view text = data;
  const ByteView bytes = as_bytes(text);
  return {bytes.begin(), bytes.end()};
}

// Raises InvalidArgument naming the argument.
inline Endpoint endpoint_from(const std::string& ip, int port, const char* argument) {
  const auto endpoint = Endpoint::parse(ip, 0);
  if (!endpoint)
    raise_error({endpoint.error().code, std::string(argument) + ": " + endpoint.error().message});
  if (port < 0 || port > 65535)
    raise_error(
        {ErrorCode::kInvalidArgument,
         std::string(argument) + ": expected a port from 0 to 65535, got " + std::to_string(port)});
  Endpoint result = *endpoint;
  result.port = static_cast<uint16_t>(port);
  return result;
}

template <class T> T value_or_raise(Result<T> result) {
  if (!result)
    raise_error(result.error());
  return std::move(*result);
}

// Lets a signal handler of Python's raise. With the GIL held.
inline void check_signals() {
  if (PyErr_CheckSignals() != 0)
    throw pybind11::error_already_set();
}

} // namespace lah::bindings
