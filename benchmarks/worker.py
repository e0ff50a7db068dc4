"""A process of a benchmark: the parent asks, it works; one JSON line each way. Only the standard library, so that it
runs in any environment.

Everything a worker starts belongs to its session, so that all of it can be counted, and ended.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class WorkerError(RuntimeError):
    """The work raised, took too long, or its process ended."""


class Worker:
    """A child that runs `python -m module`, whose main calls `answer_requests`.

    Args:
        module: its name.
        python: the interpreter; this one by default.
        arguments: its command line.
        prefix: a command that runs it somewhere else.
    """

    def __init__(
        self, module: str, python: str = sys.executable, arguments: Sequence[str] = (), prefix: Sequence[str] = ()
    ):
        self.module = module
        self.started = time.monotonic()
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.process = subprocess.Popen(
            [*prefix, python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "LAH_BENCH_VERBOSE" not in os.environ else None,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        self._unread = b""

    def ask(self, work: str, timeout: float = 120.0, **arguments: Any) -> Any:
        """Run one piece of work. Raises WorkerError; after a timeout the worker is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"work": work, "arguments": arguments}).encode() + b"\n")
            self.process.stdin.flush()
            answer = json.loads(self._line(work, time.monotonic() + timeout))
        except (BrokenPipeError, ValueError):
            raise WorkerError(f"{self.module} {work}: the process has ended") from None
        if "error" in answer:
            raise WorkerError(f"{self.module} {work}: {answer['error']}")
        return answer["result"]

    def pids(self) -> list[int]:
        """Every living process of the worker's session, its own first."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                state, _, _, session = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(name))
        return sorted(found, key=lambda pid: (pid != self.process.pid, pid))

    def close(self, timeout: float = 5.0) -> None:
        """Ask it to end, then end its whole session."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        until = time.monotonic() + 30
        while (pids := self.pids()) and time.monotonic() < until:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        self.process.wait(timeout)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _line(self, work: str, deadline: float) -> bytes:
        # Not readline(): a worker's children may hold the pipe open long after it has ended.
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0:
                self.close(0.1)
                raise WorkerError(f"{self.module} {work}: no answer in time")
            if select.select([fd], [], [], min(left, 0.5))[0]:
                data = os.read(fd, 1 << 20)
                if not data:
                    raise WorkerError(f"{self.module} {work}: the process has ended")
                self._unread += data
            elif self.process.poll() is not None:
                raise WorkerError(f"{self.module} {work}: ended with status {self.process.returncode}")
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def raise_descriptors(needed: int) -> None:
    """Let this process open so many descriptors more. Raises RuntimeError if its hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/dev/fd")) + needed
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RuntimeError(f"{wanted} open files are needed, and this process may have {hard}: see `ulimit -Hn`")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def answer_requests(side: Any) -> None:
    """Answer the parent until it closes our input: each request names a method of `side` and its keyword arguments."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(side, request["work"])(**request["arguments"])}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    try:
        side.close()
    finally:
        os.killpg(
            os.getpgid(0), signal.SIGKILL
        )  # what a peer forked would outlive it, also where the parent was killed
