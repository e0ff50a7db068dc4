"""What the GPU benchmarks need of a machine, and building the ops for its GPU."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.process import Outcome, run
from learning_at_home.ops import schemas
from learning_at_home.ops.library import has_kernel

BUILD_SECONDS = 2400.0


def missing() -> str | None:
    """What this machine lacks, in one line; None: nothing."""
    lacks = []
    if not torch.cuda.is_available() and (torch.version.cuda is not None or shutil.which("nvidia-smi") is None):
        lacks.append("an NVIDIA GPU with its driver")
    if torch.version.cuda is None:
        lacks.append(f"a torch with CUDA (this is torch {torch.__version__})")
    if without_kernels() and nvcc() is None:
        lacks.append("nvcc, CUDA's compiler (on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin)")
    return f"this machine lacks {'; '.join(lacks)}" if lacks else None


def without_kernels() -> list[str]:
    """The ops that have no CUDA kernel in this installation."""
    return [name for name in schemas.SCHEMAS if not has_kernel(name, "CUDA")]


def nvcc(tool: str = "nvcc") -> str | None:
    """Where a program of the CUDA toolkit is."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which(tool) or shutil.which(tool, path=os.pathsep.join(folders))


def build_command(capability: tuple[int, int]) -> list[str]:
    """pip's line for a GPU of this compute capability alone; what `./run setup` does, for one architecture."""
    major, minor = capability
    options = ["build-dir=build/{wheel_tag}", "cmake.define.LAH_CUDA=ON"]
    options.append(f"cmake.define.CMAKE_CUDA_ARCHITECTURES={major}{minor}-real")
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    return [*pip, *(word for option in options for word in ("-C", option)), "-e", "."]


def build(capability: tuple[int, int]) -> Outcome:
    """Build, in a process that finds nvcc. Its last words are the command, if it fails."""
    compiler = nvcc()
    assert compiler is not None, "missing() said so"
    path = os.pathsep.join([str(Path(compiler).parent), os.environ.get("PATH", "")])
    command = build_command(capability)
    outcome = run("build", command, BUILD_SECONDS, {"PATH": path, "CUDACXX": compiler})
    words = "for this GPU" if outcome.passed else f"{outcome.words}; it was `{shlex.join(command)}`"
    return Outcome(outcome.name, outcome.passed, words, outcome.seconds, outcome.tail)


def describe() -> str:
    """The GPU, its driver and the software, in one line."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
        driver = done.stdout.split("\n")[0].strip() or "unknown"
    except OSError:
        driver = "unknown"
    return f"{torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}, torch {torch.__version__}"
