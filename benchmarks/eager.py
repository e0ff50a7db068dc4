"""What the benchmarks of the ops share: an op beside the same work in eager torch and in torch.compile, and the copy of
the same minute.

Eager is what a good user of PyTorch would write without these ops: no needless copies, results allocated anew as
always. All sides get a malloc that keeps large blocks: else most of the time goes into fresh pages. torch.compile is
the compiled eager function (default backend, static shapes; compiling is not timed). Copy ceiling: the bytes that must
move, at the rate of a copy on this machine in the same round; its ratio is the share of that rate that ours reaches.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from benchmarks.common import OURS, Options, Row, compare, console, in_turn, report

KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
COPIED = 1 << 25  # elements of the copy: beyond any cache
EAGER, COMPILED, CEILING = "eager torch", "torch.compile", "copy ceiling"
Work = Callable[[], object]


class Pair(NamedTuple):
    """An op and the same work without it."""

    ours: Work
    eager: Work
    nbytes: float | None = None  # that must move
    others: Mapping[str, Work] = MappingProxyType({})  # further peers, by name
    compiled: Work | None = None  # eager's compiled form, where compiling the whole of it makes no sense


def keep_pages(module: str) -> None:
    """Start this benchmark anew with that malloc, if it has another."""
    if not KEEP_PAGES.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | KEEP_PAGES)


def beside_eager(
    title: str,
    pairs: Mapping[str, Pair | tuple[Work, Work, float | None]],
    options: Options,
    repeats: int = 5,
    compiling: bool = True,
) -> None:
    """Time every pair and print the table, in milliseconds: the best of so many repeats in every round."""
    source, target = torch.randn(2, COPIED)
    missing = compiler_missing() if compiling else None
    results: list[Row] = []
    for name, pair in pairs.items():
        ours, eager, nbytes, others, compiled = Pair(*pair)
        works = {OURS: ours, EAGER: eager}
        if compiling and missing is None:
            works |= compiled_work(name, eager, compiled)
        works |= others
        for work in works.values():
            work()
        works["copy"] = lambda: target.copy_(source)
        best = in_turn(
            options.rounds, {side: lambda work=work: milliseconds(work, repeats) for side, work in works.items()}
        )
        value = {side: min(times) for side, times in best.items()}
        rate = 8.0 * COPIED / value.pop("copy")  # bytes read and written in a millisecond
        results += compare(name, "ms", ordered(value, None if nbytes is None else nbytes / rate))
        if missing is not None:
            results.append(Row(name, "ms", value[OURS], f"{COMPILED}: {missing}"))
    report(f"{title}, {torch.get_num_threads()} threads", results, options)


def milliseconds(work: Work, repeats: int) -> float:
    """The best of a few: what the work costs when nobody else has the cores."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def compiler_missing() -> str | None:
    """Why torch.compile does not work on this machine, in words; None: it does."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.ones(8))
    except Exception as error:  # whatever is wrong with the machine, the other columns can be had
        words = f"{type(error).__name__}: {error}"
        return "no C++ compiler" if "InvalidCxxCompiler" in words else words.strip().splitlines()[0][:80]
    return None


def compiled_work(name: str, eager: Work, compiled: Work | None = None) -> dict[str, Work]:
    """Eager's compiled form, run once; nothing, and the reason on the screen, if that fails."""
    torch.compiler.reset()  # pairs share code: a second one would be compiled for shapes that vary
    work = compiled or torch.compile(eager, dynamic=False)
    try:
        work()
    except Exception as error:
        console().print(f"{name}: torch.compile failed: {str(error).strip().splitlines()[0]}", markup=False)
        return {}
    return {COMPILED: work}


def ordered(value: dict[str, float], ceiling: float | None) -> dict[str, float]:
    """With the ceiling put before the further peers: tables of all ops have the same first columns."""
    first = {side: value[side] for side in (OURS, EAGER, COMPILED) if side in value}
    return first | ({} if ceiling is None else {CEILING: ceiling}) | value
