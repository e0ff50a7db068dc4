#pragma once

#include "dht/declaration.hpp"
#include "dht/node.hpp"

namespace lah::dht {

// All live declarations under one prefix, as far as this node knows: told by the network while
// somebody watches, asked for otherwise. What one refresh misses stays until it expires.
class PrefixReader {
public:
  PrefixReader(Node& node, std::string prefix) : node_(node), prefix_(std::move(prefix)) {}
  ~PrefixReader() { ignore(); }
  PrefixReader(const PrefixReader&) = delete;
  PrefixReader& operator=(const PrefixReader&) = delete;

  // Listens until told to ignore(). `on_change` is called once everything was read, and whenever
  // something changes then; not for what merely goes on, or expires.
  void listen(std::function<void()> on_change);
  void ignore();
  bool listening() const { return on_change_ != nullptr; }
  bool complete() const { return complete_; } // everything was read since listen()

  // One refresh at a time: a call during one waits for the same.
  void refresh(Time deadline, std::function<void()> done);
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
  struct Part {
    std::optional<ListenId> listen; // none: too many keys are listened to already
    bool told = false;
  };
  void listen_to_parts();
  void on_event(uint32_t part, const ListenEvent& event);
  void learn(uint32_t part, const Record& record);
  uint32_t parts() const; // of the owner that has most

  void get_part(uint32_t part);
  void on_part(uint32_t part, const GetResult& result);
  void finish_one();

  Node& node_;
  std::string prefix_;
  std::map<PublicKey, Owner> owners_;
  std::function<void()> on_change_;
  std::map<uint32_t, Part> parts_; // listened to
  bool complete_ = false;
  std::vector<std::function<void()>> waiting_;
  Time deadline_ = 0;
  Time refreshed_at_ = kNever;
  size_t open_ = 0;
};

} // namespace lah::dht
