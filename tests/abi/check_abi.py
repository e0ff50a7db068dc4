"""Check a built `_C` against the reference, under whatever torch and Python run this.

    python tests/abi/check_abi.py PATH/TO/_C.so

Needs torch and nothing else: the package need not be installed, its files are loaded by path. Prints one
line; exits 1 if an op differs.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

OPS = Path(__file__).resolve().parents[2] / "learning_at_home" / "ops"


def load(name: str) -> ModuleType:
    """A module of learning_at_home.ops, without its package."""
    spec = importlib.util.spec_from_file_location(name, OPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(got: Tensor, want: Tensor) -> bool:
    """Equal integers, and floats equal up to rounding; NaN is equal to nothing."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    if not got.is_floating_point():
        return torch.equal(got, want)
    tolerance = 1e-5 if got.dtype in (torch.float32, torch.float64) else 4e-3
    return bool((got.double() - want.double()).norm() <= tolerance * want.double().norm())


def check_case(reference: ModuleType, tokens: int, grid: list[int], dtype: torch.dtype, align: int) -> list[str]:
    """Run every op of one mixture; returns the names of those that differ from the reference."""
    raw = torch.ops.learning_at_home
    wrong: list[str] = []

    def run(name: str, *arguments: object, **options: object) -> list[Tensor]:
        got = getattr(raw, name)(*arguments, **options)
        want = getattr(reference, name)(*arguments, **options)
        got, want = ([x] if isinstance(x, Tensor) else list(x) for x in (got, want))
        if not all(same(x, y) for x, y in zip(got, want)):  # noqa: B905 - Python 3.9 has no strict
            wrong.append(name)
        return want

    kind = torch.float64 if dtype == torch.float64 else torch.float32
    experts = int(torch.tensor(grid).prod())
    alive = torch.randint(-(2**31), 2**31, ((experts + 31) // 32,)).int()
    logits = torch.randn(tokens, sum(grid), dtype=kind)
    options = {"alive": alive, "capacity": 9, "align": align, "want_stats": True}
    index, score, rank, offset, lse, stats = run("route_grid", logits, grid, 4, **options)
    grads = (torch.randn_like(score), torch.randn_like(lse), torch.randn_like(stats))
    run("route_backward", *grads, logits, grid, index, lse, alive=alive)
    rows, source = run("dispatch", torch.randn(tokens, 33).to(dtype), index, rank, offset, align=align)
    for packed, block in ((torch.int8, 0), (torch.float8_e4m3fn, 16), (torch.bfloat16, 0)):
        layout = {"dtype": packed, "block": block, "align": align}
        quantized, scale, _ = run(
            "dispatch_quantized", torch.randn(tokens, 33).to(dtype), index, rank, offset, **layout
        )
        run("dequantize", quantized, scale, dtype=dtype, block=block)
    ok = (torch.rand(len(rows)) < 0.8) & (source >= 0)
    rows = torch.randn(rows.shape).to(dtype)  # as if experts had answered
    rows[~ok] = float("nan")
    run("dispatch_backward", rows, index, rank, offset, ok=ok)
    for normalize in (0, 1, 2):
        mixture = {"ok": ok, "normalize": normalize}
        _, weight = run("combine", rows, score.abs(), index, rank, offset, **mixture)
        grad = torch.randn(tokens, 33).to(dtype)
        run("combine_backward", grad, rows, score.abs(), weight, index, rank, offset, **mixture)
    x = torch.randn(tokens, 66).to(dtype)
    for factor in (torch.randn(tokens, dtype=kind), None):
        run("swiglu", x, factor)
        run("swiglu_backward", grad, x, factor)
    return wrong


def main(binary: str) -> int:
    library = load("schemas").define()
    torch.ops.load_library(binary)
    reference = load("reference")
    torch.manual_seed(0)
    wrong = set()
    for tokens, grid in ((0, [4]), (70, [40]), (130, [7, 9]), (65, [3, 4, 5])):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            for align in (1, 8):
                wrong.update(check_case(reference, tokens, grid, dtype, align))
    del library  # the ops live as long as it does
    verdict = f"differ from the reference: {', '.join(sorted(wrong))}" if wrong else "agree with the reference"
    print(f"torch {torch.__version__}, Python {platform.python_version()}: the ops of {binary} {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
