"""A wide-area network on this machine: nodes in network namespaces of their own, joined by links of a given delay, rate
and loss. Linux only; needs root, or user namespaces and a /dev/net/tun that the user may open.

By hand, two commands on two nodes (10.98.0.1 and 10.98.0.2); ends when the second has ended:

    python -m tests.wan.emulator --delay-ms 50 --rate-mbit 1000 --loss 0.01 -- SERVER ARGS -- CLIENT ARGS
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("tun_link.cpp")


@dataclass(frozen=True)
class Link:
    """One direction between two nodes.

    Args:
        delay_ms: one way, after the packet has left its queue.
        rate_mbit: Mbit/s of IP packets; 0 is unlimited.
        loss: share of packets lost, each by itself.
        queue_ms: packets that would wait longer for the wire are dropped.
    """

    delay_ms: float = 0.0
    rate_mbit: float = 0.0
    loss: float = 0.0
    queue_ms: float = 100.0

    def text(self) -> str:
        """As the forwarder reads it."""
        return f"{self.delay_ms}:{self.rate_mbit}:{self.loss}:{self.queue_ms}"


@dataclass(frozen=True)
class Carried:
    """What one direction of a pair did: packets and bytes sent on, packets lost, packets that found its queue full."""

    packets: int
    bytes: int
    lost: int
    overflowed: int


class Unavailable(RuntimeError):
    """This machine does not let us make network namespaces or TUN devices; the message says what failed."""


class WideAreaNetwork:
    """Nodes that reach each other over emulated links only; everything started in them ends with the block.

    Every node has the TCP buffers that Linux ships with (at most 4 MiB to send, 6 MiB to receive) and the machine's own
    congestion control. Raises Unavailable.

    Args:
        link: of every pair, both ways.
        nodes: how many.
        mtu: bytes of the largest IP packet. Where no link loses packets, what TCP sends in a row is carried in one
            piece, so small packets cost little.
    """

    def __init__(self, link: Link, nodes: int = 2, mtu: int = 1500) -> None:
        pairs = [f"{a}:{b}:{link.text()}" for a in range(nodes) for b in range(nodes) if a != b]
        self._forwarder = subprocess.Popen(
            [program(), str(nodes), str(mtu), *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._unread = b""
        self._started: list[subprocess.Popen[Any]] = []
        try:
            word, pid, *fds = self._line().split()
            assert word == "READY"
        except (ValueError, AssertionError):
            self._forwarder.kill()
            error = self._forwarder.communicate()[1].decode(errors="replace").strip()
            raise Unavailable(error or "the forwarder did not start") from None
        self._namespaces = [f"/proc/{pid}/fd/{fd}" for fd in fds]
        self._user_namespace = [] if os.geteuid() == 0 else [f"--user=/proc/{pid}/ns/user", "--preserve-credentials"]

    def address(self, node: int) -> str:
        """The IPv4 address of a node."""
        return f"10.98.0.{node + 1}"

    def command(self, node: int, command: Sequence[str] = ()) -> list[str]:
        """The same command, on a node."""
        return ["nsenter", *self._user_namespace, f"--net={self._namespaces[node]}", "--", *command]

    def start(self, node: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on a node; `options` are those of subprocess.Popen. It ends with the network."""
        process = subprocess.Popen(self.command(node, command), start_new_session=True, **options)
        self._started.append(process)
        return process

    def set_link(self, sender: int, receiver: int, link: Link) -> None:
        """Change one direction of a pair, while packets are under way."""
        self._tell(f"{sender}:{receiver}:{link.text()}")

    def carried(self) -> dict[tuple[int, int], Carried]:
        """What every direction (sender, receiver) has done so far."""
        self._tell("stats")
        found = {}
        while line := self._line():
            sender, receiver, *counts = map(int, line.split())
            found[sender, receiver] = Carried(*counts)
        return found

    def close(self) -> None:
        """End what was started, then the network."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._started.clear()
        self._forwarder.kill()
        self._forwarder.communicate()

    def __enter__(self) -> WideAreaNetwork:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        assert self._forwarder.stdin is not None
        self._forwarder.stdin.write(line.encode() + b"\n")
        self._forwarder.stdin.flush()

    def _line(self, seconds: float = 10.0) -> str:
        assert self._forwarder.stdout is not None
        fd, until = self._forwarder.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
                raise ValueError("no answer from the forwarder")
            data = os.read(fd, 65536)
            if not data:
                raise ValueError("the forwarder has ended")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


@functools.cache
def program() -> str:
    """Path of the forwarder, compiled if there is none newer than its source. Raises Unavailable."""
    built = ROOT / "build" / "wan" / "lah_tun_link"
    if built.exists() and built.stat().st_mtime > SOURCE.stat().st_mtime:
        return str(built)
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if sys.platform != "linux" or compiler is None or shutil.which("nsenter") is None:
        raise Unavailable("needs Linux, a C++ compiler and nsenter (util-linux)")
    built.parent.mkdir(parents=True, exist_ok=True)
    fresh = built.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, "-std=c++20", "-O2", str(SOURCE), "-o", str(fresh)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Unavailable(f"{compiler} failed: {done.stderr}")
    fresh.replace(built)
    return str(built)


@functools.cache
def why_not() -> str | None:
    """Why networks cannot be emulated here, in words; None where they can."""
    try:
        with WideAreaNetwork(Link()) as network:
            done = subprocess.run(network.command(0, ["true"]), capture_output=True, text=True, check=False)
    except (Unavailable, OSError) as error:
        return str(error)
    return f"nsenter: {done.stderr.strip()}" if done.returncode != 0 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The two commands of the command line, each on a node; the status of the second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way")
    parser.add_argument("--rate-mbit", type=float, default=0.0, help="0: unlimited")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets")
    parser.add_argument("--queue-ms", type=float, default=100.0, help="the most that a packet waits for the wire")
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--possible", action="store_true", help="only say whether it can be done here, and why not")
    parser.add_argument("commands", nargs=argparse.REMAINDER, metavar="-- COMMAND -- COMMAND")
    given = parser.parse_args(arguments)
    if given.possible:
        print(why_not() or "networks can be emulated here")
        return 3 if why_not() else 0
    commands = _split(given.commands)
    if len(commands) != 2:
        parser.error("two commands, each after a --")
    link = Link(given.delay_ms, given.rate_mbit, given.loss, given.queue_ms)
    try:
        with WideAreaNetwork(link, mtu=given.mtu) as network:
            network.start(0, commands[0])
            return int(network.start(1, commands[1]).wait())
    except Unavailable as error:
        print(f"no networks can be emulated here: {error}", file=sys.stderr)
        return 3


def _split(words: Iterable[str]) -> list[list[str]]:
    commands: list[list[str]] = []
    for word in words:
        if word == "--":
            commands.append([])
        elif commands:
            commands[-1].append(word)
    return [command for command in commands if command]


if __name__ == "__main__":
    sys.exit(main())
