"""What a build needs that only the system's package manager can give."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path


def missing_tools(*, with_cmake: bool) -> list[str]:
    """What a build needs on PATH and does not find there. The libraries are looked for by CMake."""
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    wanted = {
        f"a C++20 compiler ({', '.join(compilers)})": compilers,
        "pkg-config": ["pkg-config", "pkgconf"],
    }
    wheel = importlib.util.find_spec("cmake")
    if with_cmake and (wheel is None or wheel.origin is None):  # without origin it is some folder of that name
        wanted["cmake"] = ["cmake", "cmake3"]
    return [what for what, names in wanted.items() if not any(shutil.which(name) for name in names)]


def require_tools(*, with_cmake: bool) -> None:
    """Exit with one message that names what is missing and the line that installs it."""
    missing = missing_tools(with_cmake=with_cmake)
    if missing:
        names, lines = ", ".join(missing), Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
        sys.exit(f"learning_at_home: system packages are missing: {names}. Install them with\n{lines}")
