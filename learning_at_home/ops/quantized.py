"""Tokens in fewer bits on their way to the experts: `dispatch_quantized` and `dequantize`."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import FLOATS, check_plan, check_range, check_tensor, either

QUANTIZED = (torch.int8, torch.float8_e4m3fn, torch.bfloat16)
BLOCK_UNIT = 16


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
    """Round each token to few bits and copy it to the rows of its experts: x[t] is nearly row * scale.

    Symmetric quantization with dynamic scales, in the pass that moves the tokens: scale is the largest magnitude
    divided by 127 (int8) or 448 (float8_e4m3fn), so int8 is off by half a scale at most, float8 by a 16th of the
    element or, near zero, scale / 1024. Computed in float32 (float64 is rounded to it first), ties to even, with the
    same bits on every device. A NaN or infinity among the elements of a scale makes the scale NaN: all of them
    dequantize to NaN, none to a plausible number. bfloat16 is a plain rounded copy.

    Not differentiable: gradients flow through `dispatch`.

    Args:
        x: [T, H], float32, float64 (CPU), bfloat16 or float16; detached, or under `torch.no_grad`.
        index, rank, offset: of a `Route` or `Plan`.
        dtype: of the rows: torch.int8, torch.float8_e4m3fn or torch.bfloat16.
        block: consecutive elements of a row that share a scale, a multiple of 16; fewer in the last block of a row.
            0: the whole row shares one. Must be 0 with bfloat16.
        align: as that was made with.

    Returns:
        rows: [R, H] in `dtype`, R and order as in `dispatch`; rows that no assignment owns are zero.
        scale: float32 [R], or [R, ceil(H / block)] when block > 0, or empty [0] with bfloat16; 0 where all elements
            are 0, and in rows that no assignment owns.
        source: int32 [R], t * k + j, or -1 where no assignment owns the row.

    Raises:
        TypeError: an argument of wrong type, or x requires grad while grad mode is on.
        ValueError: an argument of wrong shape or range.
    """
    check_plan(x, index, rank, offset)
    check_tensor("x", x, FLOATS, (index.size(0), "H"))
    _refuse_gradient("x", x, "dispatch")
    if dtype not in QUANTIZED:
        raise TypeError(f"dtype: expected {either(QUANTIZED)}, got {dtype}")
    _check_block(block, dtype)
    check_range("align", align, 1)
    rows, scale, source = torch.ops.learning_at_home.dispatch_quantized(
        x.contiguous(), index, rank, offset, dtype=dtype, block=block, align=align
    )
    return rows, scale, source


def dequantize(rows: Tensor, scale: Tensor, *, dtype: torch.dtype, block: int = 0) -> Tensor:
    """The rows of `dispatch_quantized` as floats again: rows * scale, computed in float32 and rounded once.

    Not differentiable.

    Args:
        rows: [R, H], int8, float8_e4m3fn or bfloat16.
        scale: float32 [R], or [R, ceil(H / block)] when block > 0, or empty [0] with bfloat16 rows.
        dtype: of the result: float32, float64 (CPU), bfloat16 or float16.
        block: as given to `dispatch_quantized`.

    Returns:
        [R, H] in `dtype`.

    Raises:
        TypeError: an argument of wrong type, or one that requires grad while grad mode is on.
        ValueError: an argument of wrong shape or range.
    """
    check_tensor("rows", rows, QUANTIZED, ("R", "H"))
    _check_block(block, rows.dtype)
    sizes: tuple[int, ...] = (rows.size(0),)
    if rows.dtype == torch.bfloat16:
        sizes = (0,)
    elif block:
        sizes = (rows.size(0), (rows.size(1) + block - 1) // block)
    check_tensor("scale", scale, (torch.float32,), sizes, like=rows)
    if dtype not in FLOATS:
        raise TypeError(f"dtype: expected {either(FLOATS)}, got {dtype}")
    _refuse_gradient("rows", rows)
    _refuse_gradient("scale", scale)
    out: Tensor = torch.ops.learning_at_home.dequantize(rows.contiguous(), scale.contiguous(), dtype=dtype, block=block)
    return out


def _refuse_gradient(name: str, x: Tensor, instead: str | None = None) -> None:
    # The result would not require grad: a gradient would be lost without a word.
    if x.requires_grad and torch.is_grad_enabled():
        way = "detach it" if instead is None else f"detach it, or use {instead}"
        raise TypeError(f"{name}: expected a tensor that does not require grad, as nothing flows back: {way}")


def _check_block(block: int, dtype: torch.dtype) -> None:
    if block < 0 or block % BLOCK_UNIT:
        raise ValueError(f"block: expected 0 or a multiple of {BLOCK_UNIT}, got {block}")
    if block and dtype == torch.bfloat16:
        raise ValueError(f"block: expected 0 with torch.bfloat16, which has no scale, got {block}")
