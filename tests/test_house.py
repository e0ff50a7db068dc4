"""Rules that keep the tree a house: what an import may do, what a core may see, what no file may hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = (".py", ".pyi", ".cpp", ".hpp", ".h", ".cu", ".cuh")
TEXT = (*CODE, ".md", ".toml", ".txt", ".cmake", ".sh", ".ipynb", "")
GENERATED = re.compile(r"^(build|dist|wheelhouse)$|^\.(?!ci$|clang-format$|gitignore$)|^__pycache__$|\.egg-info$")


def files(*folders: str, suffixes: tuple[str, ...] = CODE) -> Iterator[Path]:
    """Every file of the tree below these folders, generated ones left out."""
    for folder in folders:
        for path, names, leaves in os.walk(ROOT / folder):
            names[:] = [name for name in names if not GENERATED.search(name)]
            yield from (Path(path, leaf) for leaf in sorted(leaves) if Path(leaf).suffix in suffixes)


def python(code: str, **env: str) -> str:
    """What ``code`` prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_starts_nothing() -> None:
    code = """
import os, sys, threading
import torch

def state():
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")) if sys.platform == "linux" else ()
    targets = sorted(os.readlink(link) for link in links if os.path.islink(link))
    handles = [target for target in targets if target.startswith(("socket:", "pipe:", "anon_inode:"))]
    tasks = sorted(os.listdir("/proc/self/task")) if sys.platform == "linux" else []
    children = [open(f"/proc/self/task/{task}/children").read() for task in tasks]
    return handles, len(tasks), children, threading.active_count(), dict(os.environ)

before = state()
import learning_at_home
import learning_at_home.cli.main
import learning_at_home._core
after = state()
assert before == after, (before, after)
assert not torch.cuda.is_initialized()
print("nothing")
"""
    assert python(code) == "nothing\n"


def test_works_without_cuda() -> None:
    code = """
import torch, learning_at_home
from learning_at_home import ops
x = torch.randn(8, 4)
index, score, rank, offset, *_ = ops.route_grid(torch.randn(8, 6), [3, 3], 2)
rows, _ = ops.dispatch(x, index, rank, offset)
out, _ = ops.combine(rows, score, index, rank, offset)
torch.testing.assert_close(out, x)
assert not torch.cuda.is_available()
print("works")
"""
    assert python(code, CUDA_VISIBLE_DEVICES="") == "works\n"


def test_no_file_unpickles() -> None:
    forbidden = re.compile(
        r"\b(pickle|cPickle|dill|marshal|shelve|joblib|torch\.load|numpy\.load|np\.load|yaml\.load)\b"
        r"|(?<![\w.])(eval|exec|__import__)\("
    )
    prose = re.compile(r"^\s*(#|//)|no pickle", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files("learning_at_home", "csrc")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if forbidden.search(line) and not prose.search(line)
    ]
    assert not found, found


# --- sans-IO ------------------------------------------------------------------------------------------------

CORES = ("csrc/dht", "csrc/rpc")
FORBIDDEN_HEADERS = re.compile(
    r"^(chrono|ctime|time\.h|sys/.*|random|thread|stop_token|mutex|shared_mutex|condition_variable|semaphore|latch"
    r"|barrier|future|atomic|pthread\.h|unistd\.h|fcntl\.h|poll\.h|netdb\.h|net/.*|netinet/.*|arpa/.*|zmq.*|fstream"
    r"|iostream|filesystem)$"
)
FORBIDDEN_CALLS = re.compile(
    r"std::chrono|random_device|randombytes|std::rand\b|\bstd::(jthread|thread|mutex|async|atomic)\b|\bclock_gettime\b"
    r"|\bgettimeofday\b|\bgetrandom\b|\b(socket|recvfrom|sendto)\s*\("
)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def includes(path: Path) -> Iterator[tuple[Path | None, str]]:
    """(project file or None, header name) of every include line of a file."""
    for quote, name in INCLUDE.findall(path.read_text(encoding="utf-8")):
        candidates = [ROOT / "csrc" / name, path.parent / name]
        found = next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)
        if quote == '"':
            assert found is not None, f"{path.relative_to(ROOT)} includes {name}, which is not in csrc"
        yield found, name


def reached(start: Path) -> dict[Path, list[str]]:
    """Every project file that ``start`` includes, itself first, each with the chain of includes to it."""
    chains = {start: [start.relative_to(ROOT).as_posix()]}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        for header, name in includes(path):
            if header is not None and header not in chains:
                chains[header] = [*chains[path], name]
                waiting.append(header)
    return chains


@pytest.mark.parametrize("folder", CORES)
def test_core_sees_no_clock_randomness_thread_or_socket(folder: str) -> None:
    sources = list(files(folder))
    assert sources, f"{folder} holds no sources"
    found = set()
    for source in sources:
        for path, chain in reached(source).items():
            for header, name in includes(path):
                if header is None and FORBIDDEN_HEADERS.match(name):
                    found.add(" -> ".join([*chain, f"<{name}>"]))
        calls = FORBIDDEN_CALLS.search(re.sub(r"//.*", "", source.read_text(encoding="utf-8")))
        if calls:
            found.add(f"{source.relative_to(ROOT)}: {calls.group()}")
    assert not found, "\n".join(sorted(found))


# --- the tree -----------------------------------------------------------------------------------------------


def test_no_file_is_long() -> None:
    folders = ("csrc", "learning_at_home", "tests", "benchmarks", "examples", "fuzz", "build_backend")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(*folders)}
    assert lengths
    long = {path.relative_to(ROOT).as_posix(): lines for path, lines in lengths.items() if lines > 400}
    assert not long, long


def test_no_file_names_a_machine() -> None:
    machine_path = re.compile(r"(?<![\w.$}~-])/(work|root|home|Users|tmp|mnt|opt/(?!homebrew))/?[\w.-]")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in files("", suffixes=TEXT)
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine_path.search(line)
    ]
    assert not found, "\n".join(found)


# --- installing ---------------------------------------------------------------------------------------------

INSTALL_LINES = ("apt-get install", "dnf install", "brew install", "conda install")


def test_build_without_tools_says_what_to_install(tmp_path: Path) -> None:
    code = "import system_packages; system_packages.require_tools(with_cmake=True)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "build_backend")},
    )
    assert done.returncode == 1
    assert "C++20 compiler" in done.stderr
    assert "pkg-config, cmake" in done.stderr
    for line in INSTALL_LINES:
        assert done.stderr.count(line) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_run_without_tools_says_what_to_install(tmp_path: Path) -> None:
    for tool in ("sh", "cat", "dirname", "tr", "id", "uname"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    done = subprocess.run(
        [shutil.which("sh") or "sh", str(ROOT / "run"), "test"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": str(tmp_path)},
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout == ""
    for line in INSTALL_LINES:
        assert done.stderr.count(line) == 1, done.stderr
