// Every limit of the program, in one place. Allocation happens only after a value was checked
// against its limit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lah {

struct Limits {
  // --- wire: msgpack documents -------------------------------------------------------------------
  static constexpr size_t kWireDepth = 5;
  static constexpr size_t kWireArray = 1024;  // elements of one array
  static constexpr size_t kWireNodes = 2048;  // elements of one document
  static constexpr size_t kWireBytes = 16384; // one bin or str

  // --- names
  // --------------------------------------------------------------------------------------
  static constexpr size_t kUidBytes = 128;
  static constexpr size_t kNamesPerCall = 16384; // of one get_many or store_many of a program
  static constexpr size_t kGridDims = 8;
  static constexpr size_t kGridExperts = 65536; // full-map mode

  // --- DHT: one UDP datagram stays below every common path MTU -----------------------------------
  static constexpr size_t kDatagramBytes = 1200;
  static constexpr size_t kCertificateBytes = 72;    // of admission: an expiry and a signature
  static constexpr size_t kRecordPayloadBytes = 750; // beside two certificates
  static constexpr size_t kFindContacts = 16;
  static constexpr size_t kFindReplyContacts = 32; // distinct, of all keys of one FIND
  static constexpr size_t kStoredRecords = 65536;
  static constexpr size_t kStoredBytes = size_t{64} << 20;
  static constexpr size_t kRecordsPerKey = 4096;
  static constexpr size_t kBytesPerKey = size_t{512} << 10;
  static constexpr size_t kRecordsPerOwner =
      512; // in a large network few of an owner's are at one node
  static constexpr size_t kBytesPerOwner = size_t{64} << 10;
  static constexpr size_t kRecordsPerOwnerSmall = 4096; // a small one's node holds all bare uids
  static constexpr size_t kBytesPerOwnerSmall = size_t{1} << 20;
  static constexpr size_t kLargeNetwork = 160;               // nodes
  static constexpr size_t kBytesPerSubnet = size_t{1} << 20; // of a /24 or /48 that stores
  static constexpr size_t kRegionNodes = 40; // keys farther than so many nodes are not held
  static constexpr size_t kRegionKnown = 20; // contacts without which no key is too far
  static constexpr uint64_t kRecordLifetimeMs = 600'000;
  static constexpr size_t kSealKeyCache = 8192;  // keys shared with proven peers
  static constexpr size_t kFreshSealKeys = 2048; // with others
  static constexpr size_t kAmplification = 3; // reply bytes per request byte to an unproven address
  static constexpr size_t kUnprovenRequest = 400; // requests without a token are padded to this
  static constexpr size_t kFindKeys = 8;          // keys of one FIND
  static constexpr size_t kStoreBatch = 8;        // records of one STORE
  static constexpr size_t kBucket = 16;           // Kademlia's k
  static constexpr size_t kReplacements = 8;      // spare contacts of one bucket
  static constexpr size_t kReplicas = 8;          // nodes that hold a record
  static constexpr size_t kQuorum = 3;            // replicas that agree, for a get that asks for it
  static constexpr size_t kLookupAlpha = 6;       // requests of one lookup in flight
  static constexpr size_t kThriftyAlpha = 3;    // the same, of known replicas of which one will do
  static constexpr size_t kBackgroundAlpha = 4; // the same, while nobody waits for it
  static constexpr size_t kLookupSpares = 2;    // asked beyond kReplicas, by a store
  static constexpr size_t kLookupCandidates = 64;
  static constexpr size_t kOperations = 4096;     // gets, stores and lookups of one node
  static constexpr size_t kLingering = 1024;      // stores of one node that wait for late answers
  static constexpr size_t kOpenCalls = 4096;      // of a program that waits for one node's answers
  static constexpr size_t kBatchRequests = 128;   // of one get_many or store_many, in flight
  static constexpr size_t kCachedRecords = 16384; // found by gets that allow an age
  static constexpr size_t kCachedBytes = size_t{8} << 20;
  static constexpr size_t kPeerMemory = 2048; // peers whose token is kept, and time if in no table
  static constexpr size_t kVerifiedRecords = 8192; // signatures known to be good
  static constexpr size_t kSeeds = 64;             // initial peers
  static constexpr size_t kPendingHellos = 256;
  static constexpr size_t kNetworkIdBytes = 64;
  static constexpr size_t kContactedAddresses = 16384; // remembered, to tell strangers
  static constexpr size_t kWithdrawals = 512;          // who is told to take us out of a table
  static constexpr size_t kObservesPerSecond = 16;     // helped with, of all who ask
  static constexpr size_t kSavedContacts = 256;        // over a restart
  static constexpr size_t kSavedRecords = 256;         // of the node itself
  static constexpr size_t kStateBytes = size_t{1} << 20;
  static constexpr size_t kClockSources = 64;      // networks whose clocks are compared with ours
  static constexpr size_t kClockVotes = 8;         // that a correction needs, our own included
  static constexpr size_t kHellosPerSecond = 1000; // answered by a server; each costs a signature
  static constexpr size_t kAdmittedKeys = 65536;   // remembered by who checks certificates
  static constexpr size_t kNewcomersPerSecond =
      1024; // packets of keys never met that are looked at
  static constexpr size_t kNewcomersBurst = 2048;
  static constexpr size_t kLocalNewcomersPerSecond = 512; // of one loopback or private address
  static constexpr size_t kSubnetNewcomersPerSecond = 32; // of one /24 or /48
  static constexpr size_t kSubnetNewcomersBurst = 256;
  static constexpr size_t kNewcomersPerTurn = 4;   // of the network thread, before others' packets
  static constexpr size_t kNewcomersWaiting = 256; // for their turn
  static constexpr size_t kResultsPerSubnet = 2;   // contacts of one /24 or /48 in any result
  static constexpr size_t kDiverseCandidates = 48; // closest contacts a result is picked from
  static constexpr size_t kGreetings = 16;         // strangers being asked to prove themselves
  static constexpr size_t kDoubtedContacts = 128;  // of the routing table, to be asked again soon
  static constexpr size_t kTableCandidates = 32;   // heard of, to be asked for the routing table
  static constexpr size_t kDeclarationParts = 256; // records of one owner and prefix
  static constexpr size_t kDeclaredExperts = 65536;
  static constexpr size_t kNodeAddresses = 8;
  static constexpr size_t kDeclaredAddresses = 2; // of them, in each declaration
  static constexpr size_t kCachedPrefixes = 256;
  static constexpr size_t kLevelParts = 16;     // level records of one owner under one tuple
  static constexpr size_t kCachedLevels = 4096; // tuples whose level records a trainer keeps
  static constexpr size_t kLevelReads = 128;    // of them being read
  static constexpr uint64_t kBeamCells = uint64_t{1} << 62; // of a grid searched by beam
  static constexpr size_t kBeamScores = size_t{1} << 24;    // of one search, all rows
  static constexpr size_t kBeamChoices = 32;                // experts a row
  static constexpr size_t kBeamWidth = 65536;
  static constexpr size_t kSuspects = 4096;
  static constexpr uint64_t kListenMs = 60'000;       // a LISTEN lasts, unless it is renewed
  static constexpr size_t kDigestSectors = 8;         // a power of two
  static constexpr size_t kListeners = 16384;         // told by one node, all keys
  static constexpr size_t kListenersPerKey = 4096;    //
  static constexpr size_t kListenersPerSubnet = 1024; // unless local
  static constexpr size_t kNotifyBurst = 8;           // NOTIFYs in flight to one listener
  static constexpr size_t kNotifiesInFlight = 1024;   // to all
  static constexpr size_t kSubscriptions = 1024;      // keys one node listens to
  static constexpr size_t kPagesInFlight = 32;        // of one read
  static constexpr size_t kExpertReplicas = 7; // further owners of one expert that a trainer knows

  // --- expert calls ------------------------------------------------------------------------------
  static constexpr size_t kHeaderBytes = 1024;
  static constexpr size_t kChunkBytes = size_t{1} << 20;
  static constexpr size_t kMessageBytes = kChunkBytes + (kChunkBytes >> 2); // ZMQ_MAXMSGSIZE
  static constexpr int kSocketHighWaterMark = 8;
  static constexpr size_t kTensors = 16; // tensors of one call, one way
  static constexpr size_t kTensorDims = 8;
  static constexpr size_t kCallBytes = size_t{256} << 20; // all tensors of one call, one way
  static constexpr size_t kPeerBytes = size_t{512} << 20; // received and not yet answered, one peer
  static constexpr size_t kServerBytes = size_t{2} << 30; // the same, all peers
  static constexpr size_t kPeerCalls = 4096;              // open calls of one peer
  static constexpr size_t kCreditBytes = size_t{4} << 20; // first window of one stream
  static constexpr size_t kCreditMostBytes = size_t{32} << 20;
  static constexpr size_t kStripes = 16; // connections of one caller that share its streams
  static constexpr size_t kErrorTextBytes = 16384;             // remote traceback text
  static constexpr size_t kDescriptionBytes = size_t{1} << 20; // JSON answer to an info call
  static constexpr size_t kPoolQueue = 8192;                   // requests waiting in one pool
  static constexpr size_t kStatesLent = 4; // fetched experts on their way, up to kCallBytes each
  static constexpr uint64_t kDeadlineMs = 3'600'000; // the longest deadline a call may carry
  static constexpr size_t kCallClasses = 8192;    // kinds of calls whose durations are remembered
  static constexpr uint8_t kResends = 8;          // of one call, each after its connection was lost
  static constexpr size_t kKnownPeers = 16384;    // connections a server remembers
  static constexpr size_t kBackwardCalls = 65536; // remembered, so that none is applied twice
  static constexpr size_t kBackwardBytes = size_t{64} << 20; // results kept for repeated calls
  static constexpr uint64_t kBackwardMemoryMs = 300'000;

  // --- connections to one listener, before anybody has proved anything ---------------------------
  static constexpr size_t kConnections = 1024;          // at most 3/4 of the descriptors left
  static constexpr size_t kConnectionsPerAddress = 128; // also the burst of kConnectsPerSecond
  static constexpr size_t kConnectsPerSecond = 32;
  static constexpr size_t kSilentPerAddress = 12;    // each may hold kMessageBytes: 15 MiB together
  static constexpr size_t kConnectionSources = 4096; // addresses whose rates are remembered
  static constexpr int kBacklog = 128;               // not yet accepted
  static constexpr size_t kAccessKeys = 65536;       // of one access list
};

} // namespace lah
