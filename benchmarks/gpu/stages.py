"""The stages that run on the device, a process each: `python -m benchmarks.gpu.stages NAME --device cuda --json FILE`.

The last line printed is the stage's verdict.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.common import OURS, Row
from benchmarks.eager import EAGER, Pair
from benchmarks.gpu import layer
from benchmarks.gpu.clock import Clock, sets_for
from benchmarks.gpu.launches import Count, counted
from benchmarks.ops import combine, dispatch, quantized, route, route_grid, swiglu
from benchmarks.routed import Routed
from learning_at_home.ops import schemas
from learning_at_home.ops.library import has_kernel

GRAPH_CALLS = 3  # before a capture


def kernels(clock: Clock, quick: bool) -> list[Row]:
    """Whether every op has a kernel, and what a copy reaches."""
    key = clock.device.type.upper()
    missing = [name for name in schemas.SCHEMAS if not has_kernel(name, key)]
    if missing:
        raise RuntimeError(f"no {key} kernels for {', '.join(missing)}")
    print(f"{len(schemas.SCHEMAS)} ops have {key} kernels")
    return [Row("copy, read and written", "GB/s", clock.gigabytes_a_second())]


def movement(clock: Clock, quick: bool) -> list[Row]:
    """dispatch, combine and their gradients over hidden sizes, choices and dtypes; rows of 8 bits."""
    tokens = 64 if quick else 16384
    sizes = ((64, 2),) if quick else ((1024, 8), (2048, 8), (4096, 1), (4096, 2), (4096, 4), (4096, 8), (7168, 8))
    rows: list[Row] = []
    for dtype in (torch.bfloat16, torch.float32):
        for hidden, k in sizes:
            compiling = _compiles(clock) and hidden == 4096  # once for each k: compiling all takes longer than the rest
            count = sets_for((2 + k) * tokens * hidden * dtype.itemsize)
            cases = [Routed.make(tokens, 256, k, hidden, dtype, clock.device) for _ in range(count)]
            rows += clock.beside([dispatch.pairs(case) | combine.pairs(case) for case in cases], compiling)
    return rows + clock.beside([_quantized(tokens, 4, 64 if quick else 4096, clock)], _compiles(clock))


def routing(clock: Clock, quick: bool) -> list[Row]:
    """Choosing among 256 experts, against the bytes of logits, ids, scores and ranks; and grids with dead experts."""
    tokens = 256 if quick else 65536
    count = sets_for(4 * route.EXPERTS * tokens)
    rows = clock.beside([route.pairs_of(tokens, clock.device) for _ in range(count)], _compiles(clock))
    for side, share, cpu_tokens, k in route_grid.CASES:
        some = 32 if quick else 4 * cpu_tokens
        rows += clock.beside([route_grid.pair(side, share, some, k, clock.device)], _compiles(clock))
    return rows


def activation(clock: Clock, quick: bool) -> list[Row]:
    """swiglu and its gradient."""
    count = 64 if quick else 65536
    return [
        row
        for dtype in (torch.bfloat16, torch.float32)
        for row in clock.beside([swiglu.pairs(count, 1536, dtype, clock.device)], _compiles(clock))
    ]


def moe(clock: Clock, quick: bool) -> list[Row]:
    """A layer forward and backward, with its matrix products."""
    sizes = layer.TINY if quick else layer.LARGE
    rows: list[Row] = []
    for k in (1, 2, 4, 8):
        case = layer.Layer(sizes, k, clock.device)
        case.check()
        name = f"MoE forward and backward, T={sizes.tokens} E={sizes.experts} H={sizes.hidden} F={sizes.inner} k={k}"
        rows += clock.beside([{name: case.pair()}], _compiles(clock))
    return rows


def launches(clock: Clock, quick: bool) -> list[Row]:
    """Kernels and waits of every op, and of one forward and one backward of a layer."""
    sizes, k = layer.TINY if quick else layer.SMALL, 2
    routed = Routed.make(sizes.tokens, sizes.experts, k, sizes.hidden, torch.bfloat16, clock.device)
    pairs = route.pairs_of(sizes.tokens, clock.device) | dispatch.pairs(routed) | combine.pairs(routed)
    pairs |= swiglu.pairs(sizes.tokens * k, sizes.inner, torch.bfloat16, clock.device)
    pairs |= _quantized(sizes.tokens, k, sizes.hidden, clock)
    rows = []
    for name, pair in pairs.items():
        pair.ours()
        rows += _launched(name, counted(pair.ours, clock.device)[1], clock, 1)[:1]
    case = layer.Layer(sizes, k, clock.device)
    for _ in range(3):
        case.backward(case.moe(case.x))
    out, forward = counted(lambda: case.moe(case.x), clock.device)
    _, backward = counted(lambda: case.backward(out), clock.device)
    rows += _launched("MoE forward", forward, clock, 4) + _launched("MoE backward", backward, clock, 4)
    print(f"MoE forward: {forward.line()}; backward: {backward.line()}")
    return rows


def _launched(name: str, count: Count, clock: Clock, bar: float) -> list[Row]:
    """Kernels of ours, other kernels besides matrix products, waits of the host."""
    if clock.device.type == "cuda" and not count.launched():
        raise RuntimeError(f"{name}: the profiler saw no kernel, so nothing was counted")
    return [
        Row(f"{name}, kernels of ours", "launches", float(count.ours.total()), bound=bar),
        Row(f"{name}, others", "launches", float(count.others.total()), bound=0.0),
        Row(f"{name}, waits of the host", "waits", float(count.waits.total()), bound=0.0),
    ]


def graph(clock: Clock, quick: bool) -> list[Row]:
    """Forward captured in a CUDA graph: the same values, and the time of a replay with that of launching."""
    rows: list[Row] = []
    for sizes in (layer.SMALL, layer.LARGE):
        case = layer.Layer(sizes, 2, clock.device)
        with torch.no_grad():
            rows += _graph_row(case, sizes, clock)
    print("a replay gives the values of launching, bit for bit")
    return rows


def _graph_row(case: layer.Layer, sizes: layer.Sizes, clock: Clock) -> list[Row]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(GRAPH_CALLS):
            case.moe(case.x)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = case.moe(case.x)
    case.x.copy_(torch.randn_like(case.x))
    captured.replay()
    if not torch.equal(out, case.moe(case.x)):
        raise AssertionError("the replay differs from launching")
    works = {
        OURS: [captured.replay],
        "launched": [lambda: case.moe(case.x)],
        EAGER: [lambda: layer.eager_layer(case.moe, case.x)],
    }
    return clock.row(f"MoE forward, CUDA graph, T={sizes.tokens} H={sizes.hidden} k=2", works, launched=True)


def _quantized(tokens: int, k: int, hidden: int, clock: Clock) -> dict[str, Pair]:
    sizes = (tokens, k, hidden, torch.bfloat16)
    int8 = quantized.quantized(*sizes, torch.int8, 0, clock.device)
    return int8 | quantized.quantized(*sizes, torch.float8_e4m3fn, min(128, hidden), clock.device)


def _compiles(clock: Clock) -> bool:
    return clock.device.type == "cuda"


STAGES: dict[str, Callable[[Clock, bool], list[Row]]] = {
    stage.__name__: stage for stage in (kernels, launches, movement, routing, activation, moe, graph)
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the code")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    given = parser.parse_args()
    torch.manual_seed(0)
    rows = STAGES[given.stage](Clock(given.device, given.quick), given.quick)
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows]))
    if given.stage not in {"kernels", "launches", "graph"}:
        print(f"{len(rows)} figures")


if __name__ == "__main__":
    main()
