#pragma once

#include "cuda_emulation/cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
  void sync(const std::source_location& where = std::source_location::current()) const {
    lah::cuda_emulation::sync_grid(where);
  }
};
inline grid_group this_grid() {
  return {};
}

} // namespace cooperative_groups
