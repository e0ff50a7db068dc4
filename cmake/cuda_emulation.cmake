# lah_ops_cuda_emulated: the CUDA kernels as C++ for the CPU, by tests/cpp/cuda_emulation. Needs neither nvcc nor CUDA's
# headers.
set(emulation "${CMAKE_SOURCE_DIR}/tests/cpp/cuda_emulation")
set(rewritten "${CMAKE_BINARY_DIR}/cuda_emulation")
file(MAKE_DIRECTORY "${rewritten}/ops/cuda")
file(GLOB kernels CONFIGURE_DEPENDS csrc/ops/cuda/*.cu csrc/ops/cuda/*.cuh)
set(kernel_sources "")
foreach(kernel ${kernels})
  get_filename_component(name "${kernel}" NAME)
  string(REGEX REPLACE "[.]cu$" ".cu.cpp" name "${name}")
  add_custom_command(OUTPUT "${rewritten}/ops/cuda/${name}"
    COMMAND "${Python_EXECUTABLE}" "${emulation}/rewrite.py" "${kernel}" "${rewritten}/ops/cuda/${name}"
    DEPENDS "${kernel}" "${emulation}/rewrite.py" VERBATIM)
  list(APPEND kernel_sources "${rewritten}/ops/cuda/${name}")
endforeach()
add_library(lah_ops_cuda_emulated OBJECT "${emulation}/emulator.cpp" "${emulation}/fiber.cpp" ${kernel_sources})
target_include_directories(lah_ops_cuda_emulated PRIVATE "${rewritten}" "${emulation}" tests/cpp csrc)
# The kernels are written to nvcc's warnings.
target_compile_options(lah_ops_cuda_emulated PRIVATE -Wno-conversion -Wno-sign-compare -Wno-unknown-pragmas)
target_link_libraries(lah_ops_cuda_emulated PRIVATE lah_flags)
