"""Cases shared by the tests of the ops: devices, random routings, and what "the same" and "near" mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from learning_at_home import ops

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
RAW = torch.ops.learning_at_home
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
# busy machines are slow at random: no deadlines; the same examples in every run
QUICK = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Case:
    """Arguments of route_grid, and a generator for what else a test needs."""

    logits: Tensor
    grid: list[int]
    k: int
    options: dict[str, Any]
    generator: torch.Generator

    @property
    def experts(self) -> int:
        return math.prod(self.grid)

    def to(self, device: str) -> Case:
        options = {key: move(value, device) for key, value in self.options.items()}
        return Case(self.logits.to(device), self.grid, self.k, options, self.generator)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return values.to(dtype).to(self.logits.device)

    def chance(self, p: float, *shape: int) -> Tensor:
        return (torch.rand(*shape, generator=self.generator) < p).to(self.logits.device)


def move(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def make_case(
    seed: int,
    tokens: int,
    grid: list[int],
    k: int,
    alive: int | float | None = None,
    flavour: str = "normal",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Case:
    """alive: None, a number or a fraction. flavour: normal, ties, void (NaN and infinities), huge."""
    generator = torch.Generator().manual_seed(seed)
    shape = (tokens, sum(grid))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if flavour == "ties":
        logits = torch.randint(-1, 2, shape, generator=generator).to(dtype) * -0.0 + (logits > 0)
    elif flavour == "void":
        kind = torch.randint(0, 12, shape, generator=generator)
        for code, value in enumerate((math.nan, -math.inf, math.inf, -0.0)):
            logits = logits.masked_fill(kind == code, value)
    elif flavour == "huge":
        logits = logits * torch.finfo(dtype).max
    experts = math.prod(grid)
    if alive is not None:
        order = torch.randperm(experts, generator=generator)
        number = round(alive * experts) if isinstance(alive, float) else alive
        options["alive"] = ops.alive_bitmap(order[:number], experts)
    return Case(logits, grid, k, options, generator)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any routing: 1 to 4 ragged axes, no token to many, void and tied logits, dead experts, every option."""
    grid = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda g: math.prod(g) <= 700))
    if draw(st.booleans()):
        grid = [*grid[:1], draw(st.sampled_from([1, 15, 16, 17, 33]))]
    return make_case(
        seed=draw(st.integers(0, 2**31)),
        tokens=draw(st.sampled_from([0, 1, 2, 7, 64, 65, 130])),
        grid=grid,
        k=draw(st.sampled_from([1, 2, 3, 4, 8, 32])),
        alive=draw(st.sampled_from([None, 0, 1, 2, 3, 0.3, 0.9])),
        flavour=draw(st.sampled_from(["normal", "ties", "void", "huge"])),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
        beam=draw(st.sampled_from([0, 0, 1, 3])),
        capacity=draw(st.sampled_from([0, 0, 1, 5])),
        align=draw(st.sampled_from([1, 1, 4, 16])),
    )


def route(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(index, score, rank, offset) of the raw op."""
    index, score, rank, offset, _, _ = RAW.route_grid(case.logits, case.grid, case.k, **case.options)
    return index, score, rank, offset


def assert_same(got: Tensor, want: Tensor) -> None:
    """Bit for bit."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if got.is_floating_point():
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
        got, want = got.view(integer), want.view(integer)
    assert torch.equal(got.cpu(), want.cpu())


def assert_near(got: Tensor, want: Tensor, tolerance: float, scale: float = 0.0) -> None:
    """The norm of the difference is within tolerance of the norm of what is wanted, or of `scale`.

    Scale is the size of what was added up where sums may cancel: without it, zeros must be zeros. Both are finite.
    """
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    got, want = got.double().cpu(), want.double().cpu()
    assert got.isfinite().all()
    assert (got - want).norm() <= tolerance * max(want.norm().item(), scale)


def size_of(*terms: Tensor) -> float:
    """The scale of sums of these, which may hold NaN where nothing is read."""
    return sum(x.double().nan_to_num(0.0).norm().item() for x in terms)
