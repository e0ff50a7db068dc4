// A server without Python and torch, for tests that kill many: expert "nop" gives back its input,
// int64[*, 8]. The first number of a row names its request; those of applied backward calls go to
// the log, one a line, before they are acknowledged.
//
//   lah_nop_server [--port N] [--seed HEX] [--log FILE] [--batch-ms N] [--insecure]
//
// Prints "READY PORT KEY" when it is up and ends when stdin does.
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <thread>

#include "batching/byte_pool.hpp"
#include "net/call_server.hpp"

namespace {

using namespace lah;

constexpr size_t kRowNumbers = 8;
constexpr size_t kSlabBytes = size_t{16} << 20;
constexpr uint64_t kMaxRows = 4096;

std::map<std::string, std::string> options(int count, char** words) {
  std::map<std::string, std::string> found;
  for (int i = 1; i < count; ++i) {
    const std::string name = words[i];
    if (name == "--insecure" || i + 1 == count)
      found[name] = "";
    else
      found[name] = words[++i];
  }
  return found;
}

crypto::Identity identity(const std::string& hex) {
  std::array<uint8_t, 32> seed{};
  if (hex.size() == 2 * seed.size()) {
    for (size_t i = 0; i < seed.size(); ++i)
      seed[i] = static_cast<uint8_t>(std::stoul(hex.substr(2 * i, 2), nullptr, 16));
  } else if (getrandom(seed.data(), seed.size(), 0) != static_cast<ssize_t>(seed.size())) {
    std::abort();
  }
  return crypto::Identity::from_seed(seed);
}

batching::PoolSpec pool(rpc::Method method) {
  const batching::TensorSpec row{DType::kInt64, {kRowNumbers}};
  batching::PoolSpec spec;
  spec.uid = "nop";
  spec.method = method;
  spec.inputs = {row};
  spec.outputs = {row};
  spec.max_batch_rows = kMaxRows;
  return spec;
}

// One write a batch: what was written outlives the process.
bool append_numbers(int log, const int64_t* rows, uint64_t count) {
  std::string lines;
  for (uint64_t row = 0; row < count; ++row)
    lines += std::to_string(rows[row * kRowNumbers]) + "\n";
  return write(log, lines.data(), lines.size()) == static_cast<ssize_t>(lines.size());
}

void serve(batching::Batcher& batcher, uint32_t backward, int log, int batch_ms) {
  const net::SystemClock clock;
  struct alignas(64) Line {
    std::array<std::byte, 64> bytes;
  };
  std::vector<Line> memory(kSlabBytes / sizeof(Line));
  std::byte* slab = memory.front().bytes.data();
  while (true) {
    batching::Batch batch;
    size_t needed = 0;
    const auto taken =
        batcher.take(0, {slab, kSlabBytes}, clock.now() + 3600 * kSecond, batch, needed);
    if (taken == batching::Taken::kStopped)
      return;
    if (taken != batching::Taken::kBatch)
      continue;
    if (batch_ms > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(batch_ms));
    const std::byte* rows = (batch.owner ? batch.lent.data() : slab) + batch.offsets[0];
    if (batch.pool == backward && log >= 0 &&
        !append_numbers(log, reinterpret_cast<const int64_t*>(rows), batch.rows))
      std::abort();
    batcher.finish(batch.id, {}, {ByteView(rows, batch.rows * kRowNumbers * sizeof(int64_t))});
  }
}

} // namespace

int main(int count, char** words) {
  crypto::initialize();
  auto given = options(count, words);
  const crypto::Identity own = identity(given["--seed"]);
  int log = -1;
  if (given.contains("--log"))
    log = open(given["--log"].c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  const int batch_ms = given.contains("--batch-ms") ? std::stoi(given["--batch-ms"]) : 0;
  const auto port =
      static_cast<uint16_t>(given.contains("--port") ? std::stoi(given["--port"]) : 0);

  auto thread = net::NetThread::start();
  if (!thread)
    return 1;
  net::ZmqContext zmq(**thread);
  const net::SystemClock clock;
  batching::BytePool bytes(size_t{64} << 20);
  batching::Batcher batcher(clock, bytes);
  batching::LocalCalls answers(batcher, bytes, clock);
  batcher.add_pool(pool(rpc::Method::kForward));
  const uint32_t backward = batcher.add_pool(pool(rpc::Method::kBackward));
  uint64_t boot_id = 0;
  if (getrandom(&boot_id, sizeof(boot_id), 0) != sizeof(boot_id))
    return 1;
  net::CallServer server(**thread, zmq, own, batcher, answers, bytes, boot_id | 1);
  const auto bound = server.listen(Endpoint::v4(0x7f000001, port), !given.contains("--insecure"));
  if (!bound) {
    std::cerr << bound.error().message << std::endl;
    return 2;
  }
  std::cout << "READY " << *bound << " " << to_hex(as_bytes(own.public_key())) << std::endl;
  std::thread runtime([&] { serve(batcher, backward, log, batch_ms); });
  char byte = 0;
  while (read(0, &byte, 1) > 0) {
  }
  batcher.stop();
  runtime.join();
  return 0;
}
