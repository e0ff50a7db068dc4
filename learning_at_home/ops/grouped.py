"""The matrix products of all experts at once, each on its own rows.

Not kernels of ours: torch's grouped product where it needs no host (bfloat16 on CUDA of compute capability 9 and up), a
loop of torch's matrix products elsewhere. The loop is an op as well, so that it compiles without graph breaks; torch's
own product cannot be traced in float32, and on the CPU refuses float64 and rows that are no multiple of 16 bytes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import FLOATS, check_tensor


def grouped_mm(rows: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """Multiply the rows of each expert by its matrix: out[i] = rows[i] @ weight[e] for offset[e] <= i < offset[e + 1].

    On CUDA it waits for the device, except in bfloat16 from compute capability 9 on.

    Args:
        rows: [R, H] of `dispatch`, float32, float64, bfloat16 or float16; differentiable.
        weight: [E, H, N], dtype of rows; differentiable.
        offset: int32 [E + 1] of a `Route` or `Plan`.

    Returns:
        [R, N], dtype of rows. What rows that no expert owns become is not specified; nothing of them reaches any
        gradient of weight.

    Raises:
        TypeError, ValueError: an argument of wrong type or shape.
    """
    check_tensor("rows", rows, FLOATS, ("R", "H"))
    check_tensor("weight", weight, (rows.dtype,), ("E", rows.size(1), "N"), like=rows)
    check_tensor("offset", offset, (torch.int32,), (weight.size(0) + 1,), like=rows)
    return _GroupedMm.apply(rows.contiguous(), weight.contiguous(), offset.contiguous())


class _GroupedMm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, offset)
        return torch.ops.learning_at_home.grouped_mm(rows, weight, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = torch.ops.learning_at_home.grouped_mm_backward(grad.contiguous(), *ctx.saved_tensors)
        return (*grads, None)


def _product(rows: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    if _without_host(rows, weight):
        return torch.nn.functional.grouped_mm(rows, weight, offs=offset[1:])
    out = rows.new_empty(rows.size(0), weight.size(2))
    bounds = offset.tolist()
    for (begin, end), matrix in zip(pairwise(bounds), weight, strict=True):
        if begin < end:
            torch.mm(rows[begin:end], matrix, out=out[begin:end])
    out[bounds[-1] :].zero_()
    return out


def _product_backward(grad: Tensor, rows: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    if _without_host(rows, weight):
        product = torch.nn.functional.grouped_mm
        return product(grad, weight.transpose(1, 2), offs=offset[1:]), product(rows.t(), grad, offs=offset[1:])
    grad_rows, grad_weight = torch.empty_like(rows), torch.empty_like(weight)
    bounds = offset.tolist()
    for e, (begin, end) in enumerate(pairwise(bounds)):
        if begin < end:
            torch.mm(grad[begin:end], weight[e].t(), out=grad_rows[begin:end])
            torch.mm(rows[begin:end].t(), grad[begin:end], out=grad_weight[e])
        else:
            grad_weight[e].zero_()
    grad_rows[bounds[-1] :].zero_()
    return grad_rows, grad_weight


def _without_host(rows: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product takes these, and reads the offsets on the device."""
    aligned = rows.size(1) % 8 == 0 and weight.size(2) % 8 == 0  # 16 bytes
    return (
        rows.is_cuda
        and rows.dtype == torch.bfloat16
        and aligned
        and rows.size(0) > 0
        and torch.cuda.get_device_capability(rows.device) >= (9, 0)
    )


def implement(library: torch.library.Library) -> None:
    """Register both for every device."""
    library.impl("grouped_mm", _product, "CompositeExplicitAutograd")
    library.impl("grouped_mm_backward", _product_backward, "CompositeExplicitAutograd")
