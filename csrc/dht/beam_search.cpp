#include "dht/beam_search.hpp"

#include <algorithm>

namespace lah::dht {
namespace {
// Tuples read ahead while it is not known which ones there are.
constexpr size_t kReadAhead = 64;
} // namespace

BeamSearch::BeamSearch(Node& node, IsSuspect suspect)
    : node_(node), suspect_(std::move(suspect)),
      cache_(node, [this](const LevelName& name, bool read) { on_read(name, read); }) {
  node_.add_task(*this);
}

BeamSearch::~BeamSearch() {
  node_.remove_task(*this);
}

std::optional<Error> BeamSearch::find(Time, WallMs, BeamRequest request, Time deadline, Done done) {
  if (auto error = BeamQuery::check(request))
    return error;
  BeamQuery query(
      std::move(request), [this](const LevelName& name) { return cache_.find(name); }, suspect_,
      node_.id());
  const auto search = searches_.emplace(
      ++last_search_, Search{std::move(query), deadline, std::move(done), {}, 0, {}});
  advance(search.first);
  return std::nullopt;
}

void BeamSearch::advance(Searches::iterator found) {
  Search& search = found->second;
  std::vector<LevelName> wanted = search.query.run(node_.wall());
  std::erase_if(wanted, [&](const LevelName& name) { return search.failed.contains(name); });
  if (wanted.empty()) {
    finish(found);
    return;
  }
  const bool ahead = wanted.front() == search.query.root();
  search.waiting.clear();
  for (const LevelName& name : wanted) {
    if (ahead && search.waiting.size() > kReadAhead)
      break;
    if (!cache_.reading(name)) {
      if (cache_.reads() >= Limits::kLevelReads)
        continue; // the next one may be on its way for another search
      cache_.read(node_.time(), node_.wall(), name);
    }
    search.waiting.insert(name);
  }
  search.asked = search.waiting.size();
}

void BeamSearch::on_read(const LevelName& name, bool read) {
  std::vector<uint64_t> open;
  for (auto& [number, search] : searches_) {
    search.query.forget(name);
    if (!read)
      search.failed.insert(name);
    const bool ours = search.waiting.erase(name) > 0;
    // A quarter of the answers is worth another look; the root tells where to look at all.
    if (search.waiting.empty() ||
        (ours && (name == search.query.root() || 4 * search.waiting.size() <= 3 * search.asked)))
      open.push_back(number);
  }
  for (const uint64_t number : open)
    if (const auto search = searches_.find(number); search != searches_.end())
      advance(search);
}

void BeamSearch::finish(Searches::iterator search) {
  const Done done = std::move(search->second.done);
  BeamResult result = search->second.query.result(node_.wall());
  searches_.erase(search);
  done(std::move(result));
}

void BeamSearch::on_timer(Time now, WallMs) {
  for (auto search = searches_.begin(); search != searches_.end();) {
    const auto overdue = search++;
    if (overdue->second.deadline <= now)
      finish(overdue);
  }
}

Time BeamSearch::next_deadline() const {
  Time next = kNever;
  for (const auto& [number, search] : searches_)
    next = std::min(next, search.deadline);
  return next;
}

} // namespace lah::dht
