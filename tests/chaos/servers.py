"""Torch-free servers to kill, and calls of them that remember what was acknowledged."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from conftest import Process, wait_until

from learning_at_home import errors
from learning_at_home.client.transport import BACKWARD, FORWARD, ExpertAddress, ExpertCall, Transport

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = 8  # int64 values of one row; the first names the request
GRACE = 1.0  # seconds that a call may end after its deadline


def nop_executable() -> Path:
    """The newest build of tests/cpp/nop_server.cpp."""
    built = sorted(ROOT.glob("build/*/lah_nop_server"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise FileNotFoundError("build/tests/lah_nop_server is not there: ./run check builds it")
    return built[-1]


class NopServer(Process):
    """`lah_nop_server`: expert "nop" takes and gives int64[*, 8], forward and backward."""

    def __init__(self, *options: str):
        super().__init__(*options, program=[nop_executable()])

    def address(self, timeout: float = 30.0) -> tuple[int, bytes]:
        """Port and public key, once it is up."""
        _, port, key = self.wait_line("READY", timeout).split()
        return int(port), bytes.fromhex(key)


def applied(log: Path) -> Counter[int]:
    """How often each backward request was applied, as the server wrote down."""
    if not log.exists():
        return Counter()
    return Counter(int(line) for line in log.read_text(encoding="ascii").splitlines())


@dataclass
class Ended:
    """A call that ended: after how long, and how."""

    number: int
    method: int
    began: float
    seconds: float
    error: errors.LearningAtHomeError | None


@dataclass
class Caller:
    """Threads that call one server again and again, by turns with these methods, and keep every outcome."""

    transport: Transport
    peer: int
    deadline: float
    threads: int = 2
    calls: int = 4  # side by side, of each thread
    methods: tuple[int, ...] = (FORWARD, BACKWARD)
    ended: list[Ended] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._running = [threading.Thread(target=self._run, daemon=True) for _ in range(self.threads)]

    def start(self) -> Caller:
        for thread in self._running:
            thread.start()
        return self

    def stop(self) -> None:
        """No more calls; returns when the open ones have ended."""
        self._stop.set()
        for thread in self._running:
            thread.join(self.deadline + 30)
            assert not thread.is_alive(), "a call hangs"

    def answered(self, since: float = 0.0) -> int:
        return sum(end.error is None and end.began >= since for end in list(self.ended))

    def wait_answer(self, timeout: float) -> None:
        """Until a call that began now or later is answered."""
        since = time.monotonic()
        wait_until(lambda: self.answered(since) > 0, timeout, "a call is answered")

    def _run(self) -> None:
        while not self._stop.is_set():
            batch = [self._call(method) for method in self.methods * (self.calls // len(self.methods))]
            begin = time.monotonic()
            outcomes = self.transport.call_many([call for _, call in batch], self.deadline)
            took = time.monotonic() - begin
            for (number, call), outcome in zip(batch, outcomes, strict=True):
                assert outcome.error is not None or int(call.outputs[0][0, 0]) == number, "another call's answer"
                self.ended.append(Ended(number, call.method, begin, took, outcome.error))
            if all(outcome.error is not None for outcome in outcomes):
                time.sleep(0.02)  # a server that is known to be down answers at once

    def _call(self, method: int) -> tuple[int, ExpertCall]:
        number = next(_numbers)
        rows = torch.full((1, NUMBERS), number)
        address = ExpertAddress("nop", self.peer, "nop server")
        return number, ExpertCall(address, method, [rows], [torch.empty_like(rows)])


_numbers = itertools.count(1)  # of all requests of this process


def check_ended(ended: list[Ended], deadline: float) -> None:
    """Every call ended in time, with an answer or a typed error."""
    late = [end for end in ended if end.seconds > deadline + GRACE]
    assert not late, late[:5]
    untyped = [end for end in ended if end.error is not None and type(end.error) is errors.LearningAtHomeError]
    assert not untyped, untyped[:5]


def check_applied_once(ended: list[Ended], logs: list[Path]) -> int:
    """What was acknowledged was applied, and nothing twice in one incarnation (its log); how many were acknowledged.

    Nothing in two incarnations either: a repeated call names the one that it reached first.
    """
    counts = sum((applied(log) for log in logs), Counter())
    twice = [number for number, count in counts.items() if count > 1]
    assert not twice, f"applied twice: {twice[:5]}"
    acknowledged = [end.number for end in ended if end.method == BACKWARD and end.error is None]
    lost = [number for number in acknowledged if number not in counts]
    assert not lost, f"acknowledged, never applied: {lost[:5]}"
    return len(acknowledged)


def log_of(folder: Path, number: int) -> Path:
    return folder / f"applied-{number}.log"
