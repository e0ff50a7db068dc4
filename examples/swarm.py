"""A network and servers as operating-system processes of their own, run through the command line."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

START_SECONDS = 120.0  # importing torch in several processes at once is slow on a small machine
STOP_SECONDS = 10.0


class SwarmError(RuntimeError):
    """A process did not come up; the message holds the end of what it printed."""


class Process:
    """One ``learning-at-home`` command, from its start to its READY line to its end.

    It holds the write end of a pipe that the command watches (``--exit-with-parent``), so that no process
    outlives this one, however this one ends.
    """

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        command = [sys.executable, "-m", "learning_at_home.cli.main", *arguments, "--exit-with-parent"]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> str:
        """Wait for the READY line; returns what follows the command's name in it."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + START_SECONDS
        output = b""
        while b"\n" not in output:
            left = deadline - time.monotonic()
            if not select.select([self._process.stdout], [], [], max(left, 0.0))[0]:
                raise SwarmError(f"{self.name} is not up after {START_SECONDS:.0f} s{self._last_words()}")
            read = os.read(self._process.stdout.fileno(), 4096)
            if not read:
                status = self._process.wait()
                raise SwarmError(f"{self.name} ended with status {status} at its start{self._last_words()}")
            output += read
        ready, _, address, *_ = output.decode().split()
        if ready != "READY":
            raise SwarmError(f"{self.name}: expected a READY line, got {output!r}")
        return address

    def kill(self) -> None:
        """SIGKILL: it gets no chance to say goodbye."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM: ask for an orderly end."""
        self._process.terminate()

    def stop(self) -> int:
        """Wait for the end that was asked for, insist after ``STOP_SECONDS``; returns the exit status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()

    def _last_words(self) -> str:
        text = self.log.read_text(errors="replace").strip()
        return ":\n" + "\n".join(text.splitlines()[-20:]) if text else ", and it printed nothing"


class Swarm:
    """One bootstrap node and some servers that share the experts of an 8x8 grid. A context manager.

    :param shares: the number of experts of each server, in the grid's row-major order
    :param hidden: width of the experts
    :param folder: for the log of each process
    """

    GRID = (8, 8)
    PREFIX = "expert"

    def __init__(self, shares: list[int], hidden: int, seed: int, folder: Path, lr: float) -> None:
        if sum(shares) != self.GRID[0] * self.GRID[1]:
            raise ValueError(f"shares must add up to the {self.GRID[0] * self.GRID[1]} cells, got {shares}")
        self.shares = shares
        self._hidden, self._seed, self._folder, self._lr = hidden, seed, folder, lr
        self._processes: list[Process] = []
        self._starts = 0

    def __enter__(self) -> Swarm:
        try:
            root = self._start("network", ["network", "--port", "0"])
            host, _, port = root.ready().rpartition(":")
            self.root = (host, int(port))
            self.servers = [self._start_server(number) for number in range(len(self.shares))]
            for server in self.servers:
                server.ready()
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_all()

    def kill_server(self, number: int) -> None:
        """End a server with SIGKILL, in the middle of whatever it does."""
        self.servers[number].kill()

    def restart_server(self, number: int) -> None:
        """Start a server in the place of a killed one: same uids, new ports, newly initialised experts."""
        self.servers[number] = self._start_server(number)

    def _start_server(self, number: int) -> Process:
        first = sum(self.shares[:number])
        self._starts += 1
        return self._start(
            f"server {number}",
            [
                *("server", "--host", "127.0.0.1", "--port", "0", "--network-port", "0"),
                *("--peer", f"{self.root[0]}:{self.root[1]}", "--prefix", self.PREFIX),
                *(
                    "--grid",
                    "x".join(map(str, self.GRID)),
                    "--experts",
                    f"{first}:{first + self.shares[number]}",
                ),
                *("--hidden", str(self._hidden), "--expert", "ffn", "--lr", str(self._lr)),
                *("--torch-threads", "1", "--seed", str(self._seed + self._starts)),
            ],
        )

    def _start(self, name: str, arguments: list[str]) -> Process:
        process = Process(name, arguments, self._folder / f"{name.replace(' ', '_')}.log")
        self._processes.append(process)
        return process

    def _stop_all(self) -> None:
        root, *servers = self._processes
        for group in (
            servers,
            [root],
        ):  # servers take their declarations back while the network still answers
            for process in group:
                process.terminate()
            for process in group:
                process.stop()
