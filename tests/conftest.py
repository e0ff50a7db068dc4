"""What tests share: processes that never outlive their test, and waiting with deadlines."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

import learning_at_home as lib

TESTS = Path(__file__).resolve().parent
START_SECONDS = 60.0  # for a process to import torch and come up, however busy the machine

torch.set_num_threads(1)


class Process:
    """A child with pipes for stdin and both outputs, which are read in the background."""

    def __init__(self, *command: str | Path, program: Sequence[str | Path] = (sys.executable, "-u")) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        words = [str(word) for word in (*program, *command)]
        self.popen = subprocess.Popen(words, text=True, cwd=TESTS.parent, **pipes)
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._news: queue.Queue[None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.popen.stdout, self.stdout), (self.popen.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_line(self, start: str, timeout: float = START_SECONDS, count: int = 1) -> str:
        """The `count`-th line of either output that begins with `start`, as soon as it is there."""
        deadline = time.monotonic() + timeout
        while True:
            ended = not any(reader.is_alive() for reader in self._readers)
            found = [line for line in [*self.stdout, *self.stderr] if line.startswith(start)]
            if len(found) >= count:
                return found[count - 1]
            assert not ended, f"ended without {start!r}: {self.stdout} {self.stderr}"
            assert time.monotonic() < deadline, f"no {start!r} in {timeout} s: {self.stdout} {self.stderr}"
            try:
                self._news.get(timeout=0.5)
            except queue.Empty:
                continue

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = START_SECONDS) -> int:
        """The exit status, once both outputs are complete."""
        status = self.popen.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return status

    def end(self) -> None:
        self.popen.kill()
        self.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            assert stream is not None
            stream.close()

    def _read(self, stream: object, lines: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            lines.append(line.rstrip("\n"))
            self._news.put(None)
        self._news.put(None)


class ExpertServer(Process):
    """`expert_server.py` in a process of its own; asking for a port waits until it is up."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(TESTS / "expert_server.py", *arguments)

    def ready(self) -> float:
        """Wait until it serves; returns `time.monotonic()` then."""
        self.wait_line("READY")
        return time.monotonic()

    @property
    def port(self) -> int:
        return int(self.wait_line("READY").split()[2])

    @property
    def network_port(self) -> int:
        return int(self.wait_line("READY").split()[3])


class InBackground(threading.Thread):
    """A call in another thread."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.function, self.value, self.error = function, None, None
        self.start()

    def run(self) -> None:
        try:
            self.value = self.function()
        except BaseException as error:  # raised again by result()
            self.error = error

    def outcome(self, timeout: float = 60.0) -> object:
        """What it returned or raised."""
        self.join(timeout)
        assert not self.is_alive(), "hangs"
        return self.value if self.error is None else self.error

    def result(self, timeout: float = 60.0) -> object:
        """What it returned; raises what it raised."""
        self.outcome(timeout)
        if self.error is not None:
            raise self.error
        return self.value


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    """Starts a Python child with these arguments, an `ExpertServer` with `cls=`; none outlives the test."""
    processes: list[Process] = []

    def start(*command: str | Path, cls: type[Process] = Process) -> Process:
        process = cls(*command)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.end()


@pytest.fixture
def network() -> Iterator[lib.TesseractNetwork]:
    """A network of one node, in this process; servers join it, gates use it."""
    with lib.TesseractNetwork(port=0, host="127.0.0.1") as node:
        yield node


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Return once `condition` holds; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.005)
