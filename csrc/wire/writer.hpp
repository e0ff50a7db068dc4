// Writes one msgpack document. Arity is the caller's duty; readers check it.
#pragma once

#include <msgpack.hpp>

#include "base/bytes.hpp"

namespace lah::wire {

class Writer {
public:
  Writer() = default;
  explicit Writer(size_t expected_bytes) { out_.bytes.reserve(expected_bytes); }

  Writer& array(size_t size) {
    return packed([&] { packer_.pack_array(static_cast<uint32_t>(size)); });
  }
  Writer& u64(uint64_t value) {
    return packed([&] { packer_.pack_uint64(value); });
  }
  Writer& i64(int64_t value) {
    return packed([&] { packer_.pack_int64(value); });
  }
  Writer& f64(double value) {
    return packed([&] { packer_.pack_double(value); });
  }
  Writer& boolean(bool value) {
    return packed([&] { value ? packer_.pack_true() : packer_.pack_false(); });
  }
  Writer& nil() {
    return packed([&] { packer_.pack_nil(); });
  }
  Writer& bin(ByteView data) {
    return packed([&] {
      packer_.pack_bin(static_cast<uint32_t>(data.size()));
      packer_.pack_bin_body(reinterpret_cast<const char*>(data.data()),
                            static_cast<uint32_t>(data.size()));
    });
  }
  Writer& str(std::string_view text) {
    return packed([&] {
      packer_.pack_str(static_cast<uint32_t>(text.size()));
      packer_.pack_str_body(text.data(), static_cast<uint32_t>(text.size()));
    });
  }

  Buffer take() { return std::move(out_.bytes); }
  ByteView view() const { return out_.bytes; }

private:
  struct Sink {
    Buffer bytes;
    void write(const char* data, size_t size) {
      append(bytes, std::as_bytes(std::span(data, size)));
    }
  };

  template <class Pack> Writer& packed(Pack pack) {
    pack();
    return *this;
  }

  Sink out_;
  msgpack::packer<Sink> packer_{out_};
};

} // namespace lah::wire
