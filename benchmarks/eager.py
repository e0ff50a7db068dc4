"""What the benchmarks of the ops share: an op beside the same work in eager torch, and the copy of the same minute.

Both sides get a malloc that keeps large blocks: else most of the time goes into fresh pages. Bound: the bytes that must
move, at the rate of a copy on this machine.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.common import OURS, Options, compare, in_turn, report

KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
COPIED = 1 << 25  # elements of the copy: beyond any cache
Pair = tuple[Callable[[], object], Callable[[], object], float | None]  # ours, eager, bytes


def keep_pages(module: str) -> None:
    """Start this benchmark anew with that malloc, if it has another."""
    if not KEEP_PAGES.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | KEEP_PAGES)


def beside_eager(title: str, pairs: dict[str, Pair], options: Options, repeats: int = 5) -> None:
    """Time every pair and print the table, in milliseconds: the best of so many repeats in every round."""
    source, target = torch.randn(2, COPIED)
    results = []
    for name, (ours, eager, nbytes) in pairs.items():
        works = {OURS: ours, "eager torch": eager, "copy": lambda: target.copy_(source)}
        best = in_turn(
            options.rounds, {side: lambda work=work: milliseconds(work, repeats) for side, work in works.items()}
        )
        value = {side: min(times) for side, times in best.items()}
        rate = 8.0 * COPIED / value.pop("copy")  # bytes read and written in a millisecond
        results += compare(name, "ms", value, nbytes / rate if nbytes else None)
    report(title, results, options)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The best of a few: what the work costs when nobody else has the cores."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best
