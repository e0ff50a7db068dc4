// How long lookups take in a large network in its steady state: routing tables are filled as upkeep
// would leave them (VirtualNetwork::settle), then some nodes die, then the others store and ask.
#pragma once

#include "sim/virtual_network.hpp"

namespace lah::sim {

struct StudyOptions {
  uint64_t seed = 1;
  size_t nodes = 1000; // at least 20
  Faults links = Faults::geographic();
  double dead = 0;       // share of nodes that died since the tables were filled
  size_t lookups = 1000; // of each kind
  size_t choices = 5;    // nodes each place of a table had to choose from
  dht::TableSize table_size = dht::TableSize::kDefault;
  dht::Consistency consistency = dht::Consistency::kFirst; // of gets
};

// Durations in the order in which operations were begun.
struct StudyResult {
  std::vector<Duration> gets;     // of a value that eight nodes hold
  std::vector<Duration> closests; // of all eight nodes closest to a key
  std::vector<Duration> stores;
  size_t found = 0;         // gets that found the value
  double get_datagrams = 0; // sent by the asker for the mean get
  double store_datagrams = 0;
  double true_replicas = 0;  // share of the eight closest living nodes that hold what was stored
  double table_contacts = 0; // of the mean node
  uint64_t events = 0;
  std::string log_hash;
};

// Called with what is done, of all there is to do.
using Progress = std::function<void(const std::string& what, size_t done, size_t all)>;

// Deterministic: all follows from the options.
StudyResult study_lookups(const StudyOptions& options, const Progress& progress = nullptr);

} // namespace lah::sim
