#include "bindings/listener.hpp"

#include <algorithm>

namespace py = pybind11;

namespace lah::bindings {

py::list newest_first(std::vector<dht::Record> records) {
  std::erase_if(records, [](const auto& record) { return record.is_tombstone(); });
  std::sort(records.begin(), records.end(),
            [](const auto& a, const auto& b) { return a.seq > b.seq; });
  py::list values;
  for (const dht::Record& record : records)
    values.append(py::make_tuple(
        to_bytes(record.owner),
        py::bytes(reinterpret_cast<const char*>(record.payload.data()), record.payload.size())));
  return values;
}

void Listener::tell(std::vector<dht::Record> values) {
  bool waiting = false;
  {
    const std::lock_guard lock(mutex_);
    waiting = values_.has_value(); // then its ticket is on its way
    values_ = std::move(values);
  }
  if (!waiting)
    queue_->push(ticket_);
}

py::object Listener::take() {
  std::optional<std::vector<dht::Record>> values;
  {
    const std::lock_guard lock(mutex_);
    values = std::exchange(values_, std::nullopt);
  }
  if (!values)
    return py::none();
  return newest_first(std::move(*values));
}

void bind_listener(py::module_& m) {
  py::class_<Listener, std::shared_ptr<Listener>>(m, "Listener", "What a name holds now.")
      .def(py::init<std::shared_ptr<AnswerQueue>, uint64_t>(), py::arg("queue"), py::arg("ticket"))
      .def("take", &Listener::take);
}

} // namespace lah::bindings
