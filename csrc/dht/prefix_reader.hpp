#pragma once

#include "dht/declaration.hpp"
#include "dht/node.hpp"

namespace lah::dht {

// Where servers are, by owner: shared by all prefixes, because an owner's address is one record.
class ServerBook {
public:
  explicit ServerBook(Node& node) : node_(node) {}

  const ServerRecord* find(const PublicKey& owner, uint64_t boot_id) const;
  // `done` is called when the owner's record was looked for, found or not.
  void fetch(const PublicKey& owner, Time deadline, std::function<void()> done);

private:
  void learn(const PublicKey& owner, const GetResult& result);

  Node& node_;
  struct Known {
    ServerRecord server;
    uint64_t seq;
  };
  std::map<PublicKey, Known> known_;
};

// All live declarations under one prefix, as far as this node knows. Refreshing asks the network;
// what one refresh misses stays until it expires.
class PrefixReader {
public:
  PrefixReader(Node& node, ServerBook& servers, std::string prefix)
      : node_(node), servers_(servers), prefix_(std::move(prefix)) {}

  // One refresh at a time: a call during one waits for the same.
  void refresh(Time now, WallMs wall, Time deadline, std::function<void()> done);
  bool refreshing() const { return open_ > 0; }
  Time refreshed_at() const { return refreshed_at_; } // kNever before the first

  struct OwnedPart {
    uint64_t seq = 0;
    WallMs expiry_ms = 0;
    Declaration declaration; // no groups if taken back
  };
  struct Owner {
    std::map<uint32_t, OwnedPart> parts;
    const OwnedPart* first() const; // part 0 says how many there are
  };
  const std::map<PublicKey, Owner>& owners() const { return owners_; }
  void expire(WallMs wall);
  WallMs next_expiry() const;

private:
  void get_part(uint32_t part);
  void on_part(uint32_t part, const GetResult& result);
  void finish_one();

  Node& node_;
  ServerBook& servers_;
  std::string prefix_;
  std::map<PublicKey, Owner> owners_;
  std::vector<std::function<void()>> waiting_;
  Time deadline_ = 0;
  Time refreshed_at_ = kNever;
  size_t open_ = 0;
};

} // namespace lah::dht
