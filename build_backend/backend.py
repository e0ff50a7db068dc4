"""PEP 517 backend: scikit-build-core, with two things done first.

- What only the system's package manager can give is looked for before anything is downloaded; what is
  missing ends the build with one message and the line that installs it.
- torch becomes a build requirement only where the user has none. Naming it in ``[build-system] requires``
  would make pip fetch a second torch (gigabytes) into every isolated build. Any torch >= 2.10 serves: the
  native ops use the stable ABI.
"""

import os
import subprocess
import sys
from pathlib import Path

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403
from system_packages import require_tools

_ISOLATION_VARIABLES = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")


def _torch_requirement() -> list[str]:
    env = {name: value for name, value in os.environ.items() if name not in _ISOLATION_VARIABLES}
    script = [sys.executable, "-I", str(Path(__file__).with_name("find_torch.py"))]
    found = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    return [] if found.stdout.strip() else ["torch>=2.10"]


def get_requires_for_build_wheel(config_settings=None):
    require_tools(with_cmake=False)  # scikit-build-core asks pip for a CMake wheel where the system has none
    return [*_build.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings=None):
    require_tools(with_cmake=False)
    return [*_build.get_requires_for_build_editable(config_settings), *_torch_requirement()]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    require_tools(with_cmake=True)  # without build isolation nobody has asked for the requirements
    return _build.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    require_tools(with_cmake=True)
    return _build.build_editable(wheel_directory, config_settings, metadata_directory)
