"""Timing on a device: an op, its peers and a copy in turn, on buffers that no cache holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.common import OURS, Row, compare, in_turn, median
from benchmarks.eager import COMPILED, EAGER, Pair, Work, compiled_work, ordered

BEYOND_CACHE = 4 * 60e6  # bytes: four times the largest L2 there is
MOST_SETS = 8


class Clock:
    """Times work on one device.

    Args:
        device: cuda, measured with events, or cpu, to try the code.
        quick: smaller copies and fewer rounds.
    """

    def __init__(self, device: str, quick: bool = False):
        self.device = torch.device(device)
        self.rounds, self.calls = (2, 4) if quick else (7, 16)
        elements = (1 << 20) if quick else (1 << 28)
        self.source = torch.ones(elements, device=self.device)
        self.target = torch.empty_like(self.source)
        self.copied = 8.0 * elements  # bytes that a copy reads and writes

    def copy(self) -> None:
        """The copy that is the ceiling of what moves bytes."""
        self.target.copy_(self.source)

    def microseconds(self, works: Sequence[Work], launched: bool = False) -> float:
        """Of one call, the mean over calls of each work in turn. `launched`: with the time that the host takes."""
        calls = max(self.calls, len(works))
        if self.device.type != "cuda":
            start = time.perf_counter()
            for i in range(calls):
                works[i % len(works)]()
            return 1e6 * (time.perf_counter() - start) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        for _ in range(0 if launched else 4):  # keeps the device busy while the host queues what is measured
            self.copy()
        begin.record()
        for i in range(calls):
            works[i % len(works)]()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end) / calls

    def gigabytes_a_second(self) -> float:
        """The rate of the copy now, bytes read and written."""
        return 1e-3 * self.copied / median([self.microseconds([self.copy]) for _ in range(self.rounds)])

    def beside(self, sets: Sequence[dict[str, Pair]], compiling: bool = True) -> list[Row]:
        """The rows of all pairs, each measured over its twins in every set of buffers."""
        rows: list[Row] = []
        for name in sets[0]:
            pairs = [pairs[name] for pairs in sets]
            sides = {OURS: [pair.ours for pair in pairs], EAGER: [pair.eager for pair in pairs]}
            if compiling and (first := compiled_work(name, pairs[0].eager, pairs[0].compiled)):
                more = [pair.compiled or torch.compile(pair.eager, dynamic=False) for pair in pairs[1:]]
                sides[COMPILED] = [first[COMPILED], *more]
            sides |= {other: [pair.others[other] for pair in pairs] for other in pairs[0].others}
            rows += self.row(name, sides, pairs[0].nbytes)
        return rows

    def row(
        self, name: str, sides: dict[str, list[Work]], nbytes: float | None = None, launched: bool = False
    ) -> list[Row]:
        """One figure of every side, in microseconds: the median of rounds in turn."""
        for works in sides.values():
            for work in works:
                work()
        turns: dict[str, Callable[[], float]] = {
            side: lambda works=works: self.microseconds(works, launched) for side, works in sides.items()
        }
        turns["copy"] = lambda: self.microseconds([self.copy])
        value = {side: median(times) for side, times in in_turn(self.rounds, turns).items()}
        rate = self.copied / value.pop("copy")  # bytes in a microsecond
        return compare(name, "µs", ordered(value, None if nbytes is None else nbytes / rate))


def sets_for(nbytes: float) -> int:
    """How many sets of buffers of this size no cache holds."""
    return int(max(1, min(MOST_SETS, -(-BEYOND_CACHE // max(nbytes, 1)))))
