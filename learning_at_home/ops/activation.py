"""What an expert computes between its matrix products: `swiglu`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import FLOATS, check_tensor, shown


def swiglu(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The gated activation between the two matrix products of an expert: silu(gate) * up * weight (Shazeer 2020).

    Weights applied here, and not when the rows are combined, make combining a plain sum, and the rows need not be kept
    for the backward.

    Args:
        x: [R, 2 * F], float32, float64, bfloat16 or float16: gate [R, F] and up [R, F] side by side; differentiable.
        weight: [R], a factor of each row; differentiable. None: 1.

    Returns:
        [R, F], dtype of x; computed in float32 (float64 of float64) and rounded once.

    Raises:
        TypeError, ValueError: an argument of wrong type or shape.
    """
    check_tensor("x", x, FLOATS, ("R", "2 * F"))
    if x.size(1) % 2:
        raise ValueError(f"x: expected an even number of columns, gate and up, got {shown(x.shape)}")
    if weight is not None:
        check_tensor("weight", weight, FLOATS, (x.size(0),), like=x)
        weight = weight.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
    return _Swiglu.apply(x.contiguous(), weight)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.learning_at_home.swiglu(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.ops.learning_at_home.swiglu_backward(grad.contiguous(), x, weight)
        return grad_x, None if weight is None else grad_weight
