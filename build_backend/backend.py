"""PEP 517 backend: scikit-build-core, plus torch as a build requirement only where the user has none.

Naming torch in ``[build-system] requires`` would make pip fetch a second torch (gigabytes) into every
isolated build. Any torch >= 2.10 serves: the native ops use the stable ABI.
"""

import os
import subprocess
import sys
from pathlib import Path

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403

_ISOLATION_VARIABLES = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")


def _torch_requirement() -> list[str]:
    env = {name: value for name, value in os.environ.items() if name not in _ISOLATION_VARIABLES}
    script = str(Path(__file__).with_name("find_torch.py"))
    found = subprocess.run([sys.executable, "-I", script], env=env, capture_output=True, text=True, check=False)
    return [] if found.stdout.strip() else ["torch>=2.10"]


def get_requires_for_build_wheel(config_settings=None):
    return [*_build.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings=None):
    return [*_build.get_requires_for_build_editable(config_settings), *_torch_requirement()]
