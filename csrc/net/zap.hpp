// ZAP (https://rfc.zeromq.org/spec/27): libzmq asks here whether a key may connect, after the peer
// has proved that it holds it and before its first message.
#pragma once

#include <optional>
#include <set>
#include <unordered_map>
#include <zmq.hpp>

#include "base/limits.hpp"
#include "crypto/identity.hpp"
#include "net/net_thread.hpp"

namespace lah::net {

// Who may connect to one listener: everybody, or only some, and in no case the denied.
class AccessList {
public:
  // X25519 keys, as CURVE knows them. False if the list is full.
  bool deny(const crypto::ExchangeKey& key) { return put(denied_, key); }
  bool allow(const crypto::ExchangeKey& key) { return put(allowed_, key); }
  void allow_only_listed() { closed_ = true; }  // without it, allow() changes nothing
  bool permits(const std::string& user) const { // the key in hex, as in User-Id
    return !denied_.contains(user) && (!closed_ || allowed_.contains(user));
  }

private:
  using Keys = std::set<std::string>;
  static bool put(Keys& keys, const crypto::ExchangeKey& key) {
    return keys.size() < Limits::kAccessKeys && (keys.insert(to_hex(as_bytes(key))), true);
  }

  Keys denied_;
  Keys allowed_;
  bool closed_ = false;
};

// Answers for every listener of a context. Each has a domain of its own, under which it puts its
// list.
class Zap final : public Service {
public:
  Zap(NetThread& thread, zmq::context_t& context); // not on the network thread
  ~Zap() override;                                 // neither

  // Network thread. `list` outlives its domain.
  std::string add(const AccessList& list);
  void remove(const std::string& domain);
  uint64_t denied(const std::string& domain) const; // handshakes that ended here

  void on_ready(int fd, Time now) override;
  void on_timer(Time) override {}
  Time next_deadline() const override { return kNever; }

private:
  struct Domain {
    const AccessList* list = nullptr;
    uint64_t denied = 0;
  };
  void answer();

  NetThread& thread_;
  zmq::socket_t socket_;
  std::unordered_map<std::string, Domain> domains_;
  uint64_t next_domain_ = 1;
};

} // namespace lah::net
