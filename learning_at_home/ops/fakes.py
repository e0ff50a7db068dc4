"""Shapes and dtypes of every op's outputs, for torch.compile and opcheck. They follow from the inputs' shapes
alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .reference import rows_of
from .schemas import NAMESPACE


def routed(
    logits: Tensor, experts: int, k: int, want_lse: bool, want_stats: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `route` and `route_grid` return."""
    tokens = logits.size(0)
    index = logits.new_empty([tokens, k], dtype=torch.int32)
    return (
        index,
        logits.new_empty([tokens, k]),
        torch.empty_like(index),
        logits.new_empty([experts + 1], dtype=torch.int32),
        logits.new_empty([tokens] if want_lse or want_stats else [0]),
        logits.new_empty([2, experts] if want_stats else [0]),
    )


def route_grid(
    logits: Tensor,
    grid: list[int],
    k: int,
    *,
    alive: Tensor | None = None,
    beam: int = 0,
    capacity: int = 0,
    align: int = 1,
    want_lse: bool = False,
    want_stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return routed(logits, math.prod(grid), k, want_lse, want_stats)


def route(
    logits: Tensor,
    k: int,
    *,
    alive: Tensor | None = None,
    bias: Tensor | None = None,
    score: int = 0,
    groups: int = 1,
    top_groups: int = 1,
    capacity: int = 0,
    align: int = 1,
    want_lse: bool = False,
    want_stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return routed(logits, logits.size(1), k, want_lse, want_stats)


def plan(index: Tensor, experts: int, *, capacity: int = 0, align: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(index), index.new_empty([experts + 1]), index.new_empty([experts])


def route_backward(
    grad_score: Tensor | None,
    grad_lse: Tensor | None,
    grad_stats: Tensor | None,
    logits: Tensor,
    grid: list[int],
    index: Tensor,
    lse: Tensor,
    *,
    alive: Tensor | None = None,
    score: int = 0,
) -> Tensor:
    return torch.empty_like(logits)


def dispatch(x: Tensor, index: Tensor, rank: Tensor, offset: Tensor, *, align: int = 1) -> tuple[Tensor, Tensor]:
    r = rows_of(index.size(0) * index.size(1), offset.size(0) - 1, align)
    return x.new_empty([r, x.size(1)]), index.new_empty([r])


def dispatch_quantized(
    x: Tensor,
    index: Tensor,
    rank: Tensor,
    offset: Tensor,
    *,
    dtype: torch.dtype,
    block: int = 0,
    align: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    r, hidden = rows_of(index.size(0) * index.size(1), offset.size(0) - 1, align), x.size(1)
    scales = [0] if dtype == torch.bfloat16 else [r, (hidden + block - 1) // block] if block else [r]
    return x.new_empty([r, hidden], dtype=dtype), x.new_empty(scales, dtype=torch.float32), index.new_empty([r])


def dequantize(rows: Tensor, scale: Tensor, *, dtype: torch.dtype, block: int = 0) -> Tensor:
    return torch.empty_like(rows, dtype=dtype)


def dispatch_backward(
    grad_rows: Tensor, index: Tensor, rank: Tensor, offset: Tensor, *, ok: Tensor | None = None
) -> Tensor:
    return grad_rows.new_empty([index.size(0), grad_rows.size(1)])


def combine(
    rows: Tensor,
    score: Tensor,
    index: Tensor,
    rank: Tensor,
    offset: Tensor,
    *,
    ok: Tensor | None = None,
    normalize: int = 0,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return rows.new_empty([index.size(0), rows.size(1)]), torch.empty_like(score)


def combine_backward(
    grad: Tensor,
    rows: Tensor,
    score: Tensor,
    weight: Tensor,
    index: Tensor,
    rank: Tensor,
    offset: Tensor,
    *,
    ok: Tensor | None = None,
    normalize: int = 0,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(score)


def swiglu(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return x.new_empty([x.size(0), x.size(1) // 2])


def swiglu_backward(grad: Tensor, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    none = x.new_empty([0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return torch.empty_like(x), none if weight is None else torch.empty_like(weight)


def grouped_mm(rows: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    return rows.new_empty([rows.size(0), weight.size(2)])


def grouped_mm_backward(grad: Tensor, rows: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(weight)


def register(library: torch.library.Library) -> None:
    """Register every fake with the library that defined the ops."""
    routing = (route, route_grid, plan, route_backward)
    movement = (dispatch, dispatch_backward, combine, combine_backward)
    quantized = (dispatch_quantized, dequantize)
    for fake in (*routing, *movement, *quantized, swiglu, swiglu_backward, grouped_mm, grouped_mm_backward):
        torch.library.register_fake(f"{NAMESPACE}::{fake.__name__}", fake, lib=library)
