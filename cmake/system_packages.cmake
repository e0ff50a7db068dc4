# Finds the system libraries of lah_core, or stops with the one line that installs them.
find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
  pkg_check_modules(ZMQ QUIET libzmq>=4.3) # Debian ships no ZeroMQConfig.cmake
  pkg_check_modules(SODIUM QUIET libsodium)
endif()
find_path(LAH_CPPZMQ_INCLUDE zmq.hpp)
find_path(LAH_MSGPACK_INCLUDE msgpack.hpp)

set(missing "")
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
  file(READ "${CMAKE_CURRENT_LIST_DIR}/../build_backend/system_packages.txt" install_lines)
  message(FATAL_ERROR "learning_at_home: system packages are missing: ${missing}. Install them with\n${install_lines}")
endif()
