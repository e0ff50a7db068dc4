"""Mixed precision on the trainer's side: servers get gradients as they would be without loss scaling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from learning_at_home.errors import InvalidArgument

GradScale: TypeAlias = float | Callable[[], float] | None


class _Shared:
    """A function that copies of a module share: they are trained under the same GradScaler, not under a copy of it."""

    def __init__(self, function: Callable[[], float]):
        self.function = function

    def __call__(self) -> float:
        return self.function()

    def __deepcopy__(self, memo: dict[int, object]) -> _Shared:
        return self


def checked_grad_scale(grad_scale: GradScale) -> GradScale:
    """Return it in a form that may be copied with its module, or raise InvalidArgument."""
    if callable(grad_scale):
        return _Shared(grad_scale)
    return None if grad_scale is None else _checked(grad_scale)


def scale_now(grad_scale: GradScale) -> float:
    """The factor by which the gradients of this backward pass are scaled; 1 without loss scaling.

    Raises InvalidArgument if that is not a positive number.
    """
    return 1.0 if grad_scale is None else _checked(grad_scale() if callable(grad_scale) else grad_scale)


def unscale(grad: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Divide in float32 or more, then cast: what was scaled to be kept by half precision is kept."""
    if scale == 1.0:
        return grad.to(dtype)
    return (grad.to(torch.promote_types(grad.dtype, torch.float32)) / scale).to(dtype)


def rescale_(grad: Tensor, scale: float) -> None:
    """The way back, in place."""
    if scale != 1.0:
        grad.copy_(grad.to(torch.promote_types(grad.dtype, torch.float32)) * scale)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Neither NaN nor infinity in any of them; tensors of integers always pass."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())


def _checked(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise InvalidArgument(f"grad_scale: expected a positive number or a function that returns one, got {scale!r}")
    return float(scale)
