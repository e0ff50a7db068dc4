"""A TCP proxy that does to connections what networks do to them. Faults can change while it runs.

By hand: ``python -m tests.chaos.tcp_proxy --listen 9000 --to 127.0.0.1:8080 --fault delay=0.1``, then type another
fault and Enter. Callers ask a server for its key over UDP on the port they call: give them ``key=`` instead.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

HELD = 4 << 20  # bytes that one direction of a connection may hold back; then its sender is stopped
READ = 256 << 10
RECORDED = 16 << 20  # bytes of one direction that are recorded
NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST

KINDS = {
    "pass": "hand everything on",
    "cut": "close every connection in order (FIN), new ones too",
    "reset": "reset every connection (RST), new ones too",
    "half-open": "hand nothing on, either way, and keep the connections; what was held goes on afterwards",
    "delay": "=SECONDS each way",
    "slow-read": "=BYTES a second from the server to the caller: a caller that reads slowly",
    "slow-send": "=BYTES a second from the caller to the server",
}


@dataclass(frozen=True)
class Fault:
    """One of KINDS, with its value."""

    kind: str = "pass"
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read "kind" or "kind=value". Raises ValueError."""
        kind, _, value = text.strip().partition("=")
        if kind not in KINDS or bool(value) != KINDS[kind].startswith("="):
            raise ValueError(f"expected one of {', '.join(KINDS)} (with =value where it has one), got {text!r}")
        return cls(kind, float(value) if value else 0.0)


@dataclass
class _Direction:
    """Bytes on their way from one socket to the other."""

    source: socket.socket
    target: socket.socket
    upwards: bool  # from the caller to the server
    recorded: bytearray | None = None
    held: deque[tuple[float, memoryview]] = field(default_factory=deque)  # (when it came, bytes)
    bytes_held: int = 0
    ended: bool = False  # the source sends no more
    shut: bool = False  # and the target knows
    budget: float = 0.0
    refilled: float = 0.0

    def read(self, now: float) -> None:
        data = self.source.recv(READ)
        if not data:
            self.ended = True
            return
        if self.recorded is not None and len(self.recorded) < RECORDED:
            self.recorded += data
        self.held.append((now, memoryview(data)))
        self.bytes_held += len(data)

    def rate(self, fault: Fault) -> float | None:
        """Bytes a second, if it is limited."""
        return fault.value if fault.kind == ("slow-send" if self.upwards else "slow-read") else None

    def due(self, now: float, fault: Fault) -> float | None:
        """Seconds until something may be written; None if nothing is held."""
        if not self.held or fault.kind == "half-open":
            return None
        delay = fault.value if fault.kind == "delay" else 0.0
        wait = max(0.0, self.held[0][0] + delay - now)
        rate = self.rate(fault)
        if rate is not None:
            self.budget = min(max(rate, 1.0), self.budget + (now - self.refilled) * rate)
            self.refilled = now
            if self.budget < 1.0:
                wait = max(wait, (1.0 - self.budget) / rate, 0.02)
        return wait

    def write(self, fault: Fault) -> None:
        came, data = self.held[0]
        part = data if self.rate(fault) is None else data[: int(self.budget)]
        sent = self.target.send(part)
        self.budget -= sent
        self.bytes_held -= sent
        if sent == len(data):
            self.held.popleft()
        else:
            self.held[0] = (came, data[sent:])


class TcpProxy:
    """Listens on loopback and hands connections on to `to`, through the `fault` of the moment.

    record: keep what callers and server say, per connection, in `recordings`: (upwards, downwards).
    """

    def __init__(self, to: tuple[str, int], port: int = 0, fault: str = "pass", record: bool = False):
        self.to, self.fault, self.record = to, Fault.parse(fault), record
        self.accepted = 0
        self.recordings: list[tuple[bytearray, bytearray]] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self._listener.setblocking(False)
        self._wake_up, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._connections: list[tuple[_Direction, _Direction]] = []
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        return len(self._connections)

    def set(self, fault: str) -> None:
        """Change the fault, for open and for coming connections."""
        self.fault = Fault.parse(fault)
        self._wake()

    def once(self, fault: str) -> None:
        """`cut` or `reset` what is open now; the current fault stays."""
        if fault not in ("cut", "reset"):
            raise ValueError(f"expected 'cut' or 'reset', got {fault!r}")
        with self._lock:
            self._end_all(fault)
        self._wake()

    def close(self) -> None:
        self._closing = True
        self._wake()
        self._thread.join(10)
        for end in (self._listener, self._wake_up, self._woken):
            end.close()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wake(self) -> None:
        with suppress(OSError):
            self._wake_up.send(b"\0")

    def _run(self) -> None:
        while not self._closing:
            with self._lock:
                if self.fault.kind in ("cut", "reset"):
                    self._end_all(self.fault.kind)
                poller, targets, timeout = self._plan(time.monotonic())
            events = poller.poll(timeout)
            with self._lock:
                self._act({targets[fd]: flags for fd, flags in events if fd in targets}, time.monotonic())
        with self._lock:
            self._end_all("cut")

    def _directions(self) -> Iterator[_Direction]:
        for pair in self._connections:
            yield from pair

    def _plan(self, now: float) -> tuple[select.poll, dict[int, socket.socket], float | None]:
        """What to wait for: descriptors, and milliseconds."""
        wanted: dict[socket.socket, int] = {self._listener: select.POLLIN, self._woken: select.POLLIN}
        soonest: float | None = None
        for way in self._directions():
            if not way.ended and way.bytes_held < HELD and self.fault.kind != "half-open":
                wanted[way.source] = wanted.get(way.source, 0) | select.POLLIN
            wait = way.due(now, self.fault)
            if wait == 0.0:
                wanted[way.target] = wanted.get(way.target, 0) | select.POLLOUT
            elif wait is not None:
                soonest = wait if soonest is None else min(soonest, wait)
        poller = select.poll()
        for end, flags in wanted.items():
            poller.register(end, flags)
        return poller, {end.fileno(): end for end in wanted}, None if soonest is None else 1000 * soonest + 1

    def _act(self, events: dict[socket.socket, int], now: float) -> None:
        if self._woken in events:
            with suppress(BlockingIOError):
                self._woken.recv(4096)
        if self._listener in events:
            self._accept()
        for pair in list(self._connections):
            try:
                for way in pair:
                    self._move(way, events, now)
            except BlockingIOError:
                continue
            except OSError:  # one end was reset: so is the other
                self._end(pair, "reset")
            else:
                if all(way.shut for way in pair):
                    self._end(pair, "cut")

    def _move(self, way: _Direction, events: dict[socket.socket, int], now: float) -> None:
        gone = select.POLLIN | select.POLLHUP | select.POLLERR
        if events.get(way.source, 0) & gone and not way.ended and self.fault.kind != "half-open":
            way.read(now)
        if events.get(way.target, 0) & select.POLLOUT and way.due(now, self.fault) == 0.0:
            way.write(self.fault)
        if way.ended and not way.held and not way.shut:
            way.shut = True
            way.target.shutdown(socket.SHUT_WR)

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = socket.create_connection(self.to, timeout=5)
            except OSError:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                caller.close()
                continue
            up, down = (bytearray(), bytearray()) if self.record else (None, None)
            if up is not None and down is not None:
                self.recordings.append((up, down))
            for end in (caller, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append((_Direction(caller, server, True, up), _Direction(server, caller, False, down)))

    def _end(self, pair: tuple[_Direction, _Direction], how: str) -> None:
        self._connections.remove(pair)
        for way in pair:
            with suppress(OSError):
                if how == "reset":
                    way.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                else:
                    way.source.shutdown(socket.SHUT_RDWR)
            way.source.close()

    def _end_all(self, how: str) -> None:
        for pair in list(self._connections):
            self._end(pair, how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=int, default=0, metavar="PORT", help="on loopback; 0 picks one")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--fault", default="pass", help="; ".join(f"{kind}: {text}" for kind, text in KINDS.items()))
    options = parser.parse_args()
    host, _, port = options.to.rpartition(":")
    with TcpProxy((host, int(port)), options.listen, options.fault) as proxy:
        print(f"LISTENING 127.0.0.1 {proxy.port}", flush=True)
        for line in sys.stdin:
            try:
                proxy.set(line)
            except ValueError as error:
                print(error, flush=True)
            else:
                print(f"FAULT {line.strip()} ({proxy.connections} connections)", flush=True)


if __name__ == "__main__":
    main()
