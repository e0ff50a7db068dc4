// Codecs for Python: what a tensor becomes on its way.
#include "bindings/core.hpp"
#include "codecs/codec.hpp"

namespace py = pybind11;

namespace lah::bindings {
namespace {

codecs::Codec codec_from(int code) {
  if (code < 0 || static_cast<uint64_t>(code) > codecs::kCodecs)
    throw py::value_error("codec: unknown code " + std::to_string(code));
  return static_cast<codecs::Codec>(code);
}

uint64_t codec_bytes(int code, uint64_t elements) {
  return codecs::codec_bytes(codec_from(code), DType::kFloat32, elements);
}

// `elements` float32 at `source` to codec_bytes at `target`; decode() goes the other way.
void encode(int code, uintptr_t source, uint64_t elements, uintptr_t target) {
  const codecs::Codec codec = codec_from(code);
  const GilRelease release;
  codecs::encode(codec, {reinterpret_cast<const std::byte*>(source), elements * sizeof(float)},
                 {reinterpret_cast<std::byte*>(target),
                  codecs::codec_bytes(codec, DType::kFloat32, elements)});
}

void decode(int code, uintptr_t source, uint64_t elements, uintptr_t target) {
  const codecs::Codec codec = codec_from(code);
  const GilRelease release;
  codecs::decode(codec,
                 {reinterpret_cast<const std::byte*>(source),
                  codecs::codec_bytes(codec, DType::kFloat32, elements)},
                 {reinterpret_cast<std::byte*>(target), elements * sizeof(float)});
}

} // namespace

void bind_codecs(py::module_& m) {
  m.def("codec_bytes", &codec_bytes, py::arg("codec"), py::arg("elements"));
  m.def("encode", &encode, py::arg("codec"), py::arg("source"), py::arg("elements"),
        py::arg("target"));
  m.def("decode", &decode, py::arg("codec"), py::arg("source"), py::arg("elements"),
        py::arg("target"));
}

} // namespace lah::bindings
