# Finds the system libraries of lah_core, or stops with the one line that installs them.
find_package(PkgConfig QUIET)
set(missing "")
if(PkgConfig_FOUND)
  pkg_check_modules(ZMQ QUIET libzmq>=4.3)
  pkg_check_modules(SODIUM QUIET libsodium)
endif()
find_path(LAH_CPPZMQ_INCLUDE zmq.hpp)
find_path(LAH_MSGPACK_INCLUDE msgpack.hpp)
foreach(pair "PkgConfig_FOUND:pkg-config" "ZMQ_FOUND:libzmq" "SODIUM_FOUND:libsodium"
             "LAH_CPPZMQ_INCLUDE:cppzmq" "LAH_MSGPACK_INCLUDE:msgpack-c")
  string(REPLACE ":" ";" pair "${pair}")
  list(GET pair 0 variable)
  list(GET pair 1 name)
  if(NOT ${variable})
    list(APPEND missing ${name})
  endif()
endforeach()
if(missing)
  string(JOIN ", " missing ${missing})
  message(FATAL_ERROR "learning_at_home needs system packages that are not installed: ${missing}\n"
    "  Debian/Ubuntu: sudo apt-get install -y g++ cmake ninja-build pkg-config libzmq3-dev cppzmq-dev libsodium-dev libmsgpack-cxx-dev\n"
    "  Fedora:        sudo dnf install -y gcc-c++ cmake ninja-build pkgconf zeromq-devel cppzmq-devel libsodium-devel msgpack-cxx-devel\n"
    "  macOS:         brew install cmake ninja pkg-config zeromq cppzmq libsodium msgpack-cxx\n"
    "  conda:         conda install -c conda-forge cxx-compiler cmake ninja pkg-config zeromq cppzmq libsodium msgpack-cxx\n")
endif()
