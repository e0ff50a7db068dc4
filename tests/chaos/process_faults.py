"""What happens to processes: signals, no descriptors left, no disk left; and what they use, as the system tells.

By hand: ``python -m tests.chaos.process_faults stop=5 PID`` (stop, kill, fds, file-size; see FAULTS).
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAULTS = {
    "kill": "SIGKILL",
    "stop": "=SECONDS between SIGSTOP and SIGCONT",
    "fds": "=COUNT descriptors may be open, for good",
    "file-size": "=BYTES a file may grow to, for good: writing more fails as on a full disk",
}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP now, SIGCONT afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def few_descriptors(pid: int, count: int) -> Iterator[None]:
    """The process may open no descriptor above `count`; those it has stay."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def full_disk(pid: int, file_size: int = 0) -> Iterator[None]:
    """No file of the process may grow beyond `file_size` bytes: writes raise OSError, as on a full disk."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (file_size, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def rss(pid: int, peak: bool = False) -> int:
    """Bytes in memory: now, or the most since `forget_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise ProcessLookupError(pid)


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", help="; ".join(f"{name}: {text}" for name, text in FAULTS.items()))
    parser.add_argument("pid", type=int)
    options = parser.parse_args()
    name, _, value = options.fault.partition("=")
    if name == "kill":
        kill(options.pid)
    elif name == "stop":
        with stopped(options.pid):
            time.sleep(float(value))
    elif name == "fds":
        few_descriptors(options.pid, int(value)).__enter__()
    elif name == "file-size":
        full_disk(options.pid, int(value)).__enter__()
    else:
        parser.error(f"unknown fault {name!r}")


if __name__ == "__main__":
    main()
