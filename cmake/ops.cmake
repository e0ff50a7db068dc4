# _C: op implementations only. LibTorch stable ABI (target 2.10), no Python API, no torch library at link time.
foreach(flag "-I" "") # -I sees the environment that will use the package from inside pip's isolated build
  execute_process(COMMAND "${Python_EXECUTABLE}" ${flag} "${CMAKE_SOURCE_DIR}/build_backend/find_torch.py"
                  OUTPUT_VARIABLE TORCH_INCLUDE OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(TORCH_INCLUDE)
    break()
  endif()
endforeach()
if(NOT TORCH_INCLUDE)
  message(FATAL_ERROR "learning_at_home: torch >= 2.10 not found by ${Python_EXECUTABLE}; install it first: pip install torch")
endif()

# An empty library with torch's SONAME puts libtorch.so into NEEDED without a path or an rpath.
file(WRITE "${CMAKE_BINARY_DIR}/torch_stub.cpp.in" "")
configure_file("${CMAKE_BINARY_DIR}/torch_stub.cpp.in" "${CMAKE_BINARY_DIR}/torch_stub.cpp" COPYONLY)
add_library(torch_stub SHARED "${CMAKE_BINARY_DIR}/torch_stub.cpp")
set_target_properties(torch_stub PROPERTIES OUTPUT_NAME torch LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/stub")

set(cuda_sources "")
if(NOT LAH_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake 3.25.1 does not know nvcc's flag
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/ops/cuda/*.cu)
  elseif(LAH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LAH_CUDA=ON but no nvcc was found")
  endif()
endif()
if(cuda_sources)
  message(STATUS "learning_at_home: ops for CPU and CUDA (${CMAKE_CUDA_ARCHITECTURES})")
else()
  message(STATUS "learning_at_home: CPU-only build of the ops (LAH_CUDA=${LAH_CUDA}, nvcc ${CMAKE_CUDA_COMPILER})")
endif()

# The kernels for the CPU know nothing of torch: the C++ tests take the same objects.
file(GLOB cpu_sources CONFIGURE_DEPENDS csrc/ops/cpu/*.cpp)
add_library(lah_ops_cpu OBJECT ${cpu_sources})
target_include_directories(lah_ops_cpu PUBLIC csrc)
# Fused multiply-add would make results depend on the instruction set that the loader picks. Nobody reads the flags of
# floating-point exceptions: where they need not be right, both sides of a condition may be computed in a vector.
target_compile_options(lah_ops_cpu PRIVATE -O3 -ffp-contract=off -fno-trapping-math)
target_link_libraries(lah_ops_cpu PRIVATE lah_flags)

file(GLOB op_sources CONFIGURE_DEPENDS csrc/ops/*.cpp)
compile_for_warnings(${op_sources})
add_library(_C MODULE ${op_sources} ${cuda_sources})
set_target_properties(_C PROPERTIES PREFIX "" SKIP_BUILD_RPATH ON INSTALL_RPATH "")
target_include_directories(_C SYSTEM PRIVATE "${TORCH_INCLUDE}")
target_compile_definitions(_C PRIVATE TORCH_TARGET_VERSION=0x020a000000000000 TORCH_STABLE_ONLY)
if(cuda_sources)
  target_compile_definitions(_C PRIVATE LAH_WITH_CUDA)
endif()
# A kernel on the default stream would miss torch's and end its graphs: an error. One that spills registers is slow:
# a warning, and like any other an error in ./run check.
target_compile_options(_C PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O3>
  $<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-Werror=default-stream-launch -Xptxas=--warn-on-spills>)
target_link_libraries(_C PRIVATE lah_ops_cpu lah_flags torch_stub)
target_link_options(_C PRIVATE -Wl,--exclude-libs,ALL LINKER:--no-as-needed)
install(TARGETS _C LIBRARY DESTINATION learning_at_home)
