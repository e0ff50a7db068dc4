// Any bytes as a msgpack document, walked in the order the bytes themselves dictate.
#include <cstdlib>

#include "allocation_budget.hpp"
#include "wire/reader.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using lah::Limits;
  const lah::ByteView document = std::as_bytes(std::span(data, size));
  auto parsed = [&] {
    const lah::fuzz::AllocationBudget budget(size);
    return lah::wire::Reader::parse(document);
  }();
  if (!parsed)
    return 0;
  lah::wire::Reader& in = *parsed;
  const auto inside = [&](lah::ByteView view) {
    if (!view.empty() && (view.data() < document.data() ||
                          view.data() + view.size() > document.data() + document.size()))
      std::abort(); // a view must point into the document
  };
  for (size_t i = 0; i < size; ++i) {
    switch (data[i] % 9) {
    case 0:
      if (in.enter(0, Limits::kWireArray) > Limits::kWireArray)
        std::abort();
      break;
    case 1:
      in.leave();
      break;
    case 2:
      in.u64();
      break;
    case 3:
      in.i64();
      break;
    case 4:
      in.f64();
      break;
    case 5:
      inside(in.bin(0, Limits::kWireBytes));
      break;
    case 6:
      inside(lah::as_bytes(in.str(Limits::kWireBytes)));
      break;
    case 7:
      in.nil();
      break;
    default:
      in.skip();
    }
  }
  return 0;
}
