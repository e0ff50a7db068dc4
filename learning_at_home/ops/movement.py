"""Sending tokens to their experts and mixing what comes back: `dispatch` and `combine`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import reference
from .arguments import FLOATS, check_plan, check_range, check_tensor, either, flattened

NORMALIZE = {"softmax": reference.SOFTMAX, "sum": reference.SUM, "none": reference.NONE}


def dispatch(x: Tensor, index: Tensor, rank: Tensor, offset: Tensor, *, align: int = 1) -> tuple[Tensor, Tensor]:
    """Copy each token to the rows of its experts: row `offset[index[t, j]] + rank[t, j]` is x[t].

    Args:
        x: [T, ...], any dtype (arguments other than activations travel the same way); differentiable in
            float32, float64, bfloat16 and float16.
        index, rank, offset: of a `Route` or `Plan`.
        align: as that was made with.

    Returns:
        rows: [R, ...], R = T * k, or T * k + E * (align - 1) rounded up to align when align > 1. Rows of one
            expert are contiguous and in token order; rows that no assignment owns are zero.
        source: int32 [R], t * k + j, or -1 where no assignment owns the row.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range.
    """
    check_plan(x, index, rank, offset)
    check_tensor("x", x, None, (index.size(0), ...))
    check_range("align", align, 1)
    flat = flattened(x)
    if x.dtype in FLOATS:
        rows, source = _Dispatch.apply(flat, index, rank, offset, align)
    elif x.requires_grad:
        raise TypeError(f"x: expected a dtype without gradient or {either(FLOATS)}, got {x.dtype}")
    else:
        rows, source = torch.ops.learning_at_home.dispatch(flat, index, rank, offset, align=align)
    return rows.view(len(rows), *x.shape[1:]), source


def combine(
    rows: Tensor,
    score: Tensor,
    index: Tensor,
    rank: Tensor,
    offset: Tensor,
    *,
    ok: Tensor | None = None,
    normalize: str = "softmax",
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix the rows of each token: out[t] is the sum of weight[t, j] * rows[offset[index[t, j]] + rank[t, j]].

    The sum is over live choices j: those that have a row, and the row is ok. Other rows are never read,
    whatever they hold, and get zero gradients. A token without live choices gets zeros. Sums are made in
    float32 (float64 of float64).

    Args:
        rows: [R, ...], float32, float64, bfloat16 or float16; differentiable.
        score: [T, k], differentiable.
        index, rank, offset: of a `Route` or `Plan`.
        ok: bool [R], the rows that arrived. None: all.
        normalize: "softmax" over the live scores, "sum": score divided by the sum of the live scores (zeros
            if that is 0), "none": score.
        residual: [T, ...], dtype of rows, added to the sum; differentiable.

    Returns:
        out: [T, ...], dtype of rows.
        weight: [T, k], float32 (float64 with float64 rows), zero where not live; not differentiable.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range.
    """
    check_plan(rows, index, rank, offset)
    check_tensor("rows", rows, FLOATS, ("R", ...))
    check_tensor("score", score, FLOATS, tuple(index.shape), like=rows)
    if ok is not None:
        check_tensor("ok", ok, (torch.bool,), (rows.size(0),), like=rows)
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize: expected one of {', '.join(NORMALIZE)}, got {normalize!r}")
    if residual is not None:
        check_tensor("residual", residual, (rows.dtype,), (index.size(0), *rows.shape[1:]), like=rows)
        residual = flattened(residual)
    score = score.to(torch.float64 if rows.dtype == torch.float64 else torch.float32).contiguous()
    flat = flattened(rows)
    out, weight = _Combine.apply(flat, score, index, rank, offset, ok, NORMALIZE[normalize], residual)
    return out.view(len(out), *rows.shape[1:]), weight


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rank: Tensor, offset: Tensor, align: int) -> Any:
        rows, source = torch.ops.learning_at_home.dispatch(x, index, rank, offset, align=align)
        ctx.save_for_backward(index, rank, offset)
        ctx.mark_non_differentiable(source)
        return rows, source

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, _source: Any) -> Any:
        grad_x = torch.ops.learning_at_home.dispatch_backward(grad_rows.contiguous(), *ctx.saved_tensors)
        return grad_x, None, None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, score: Tensor, *rest: Any) -> Any:
        index, rank, offset, ok, normalize, residual = rest
        out, weight = torch.ops.learning_at_home.combine(
            rows, score, index, rank, offset, ok=ok, normalize=normalize, residual=residual
        )
        ctx.normalize = normalize
        ctx.save_for_backward(rows, score, weight, index, rank, offset, ok)
        ctx.mark_non_differentiable(weight)
        return out, weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _weight: Any) -> Any:
        *saved, ok = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows, grad_score = torch.ops.learning_at_home.combine_backward(
            grad, *saved, ok=ok, normalize=ctx.normalize
        )
        return grad_rows, grad_score, None, None, None, None, None, grad if ctx.needs_input_grad[7] else None
