"""What the public functions of the ops check of their arguments: errors name the argument, what was expected and what
came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_EXPERTS = 65536
MAX_GRID_DIMS = 8
MAX_CHOICES = 32
MAX_GROUPS = 32
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def checked_grid(name: str, grid: Sequence[int]) -> list[int]:
    """The sizes of a grid's axes."""
    sizes = [int(size) for size in grid]
    if not 1 <= len(sizes) <= MAX_GRID_DIMS or min(sizes) < 1 or math.prod(sizes) > MAX_EXPERTS:
        raise ValueError(
            f"{name}: expected 1 to {MAX_GRID_DIMS} positive sizes with a product of at most {MAX_EXPERTS}, got {sizes}"
        )
    return sizes


def check_range(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected {low} {'or more' if high is None else f'to {high}'}, got {value}")


def check_tensor(
    name: str,
    x: Any,
    dtypes: tuple[torch.dtype, ...] | None,
    shape: tuple[Any, ...],
    like: Tensor | None = None,
) -> None:
    """Check type, dtype, shape and device. Letters in `shape` stand for any size, a final ... for any further
    sizes.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if dtypes is not None and x.dtype not in dtypes:
        raise TypeError(f"{name}: expected {either(dtypes)}, got {x.dtype}")
    sizes = shape[:-1] if shape[-1] is ... else shape
    fits = x.dim() >= len(sizes) if shape[-1] is ... else x.dim() == len(sizes)
    if not fits or any(isinstance(want, int) and want != got for want, got in zip(sizes, x.shape, strict=False)):
        raise ValueError(f"{name}: expected shape {shown(shape)}, got {shown(x.shape)}")
    if like is not None and x.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, got {x.device}")


def either(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)


def shown(shape: Sequence[Any]) -> str:
    return f"[{', '.join('...' if size is ... else str(size) for size in shape)}]"


def check_plan(like: Any, index: Any, rank: Any, offset: Any) -> None:
    """Check the three tensors that say where rows are."""
    like = like if isinstance(like, Tensor) else None
    check_tensor("index", index, (torch.int32,), ("T", "k"), like)
    check_tensor("rank", rank, (torch.int32,), tuple(index.shape), like)
    check_tensor("offset", offset, (torch.int32,), ("E + 1",), like)
    for name, x in (("index", index), ("rank", rank), ("offset", offset)):
        if not x.is_contiguous() or (name == "offset" and x.numel() < 2):
            raise ValueError(f"{name}: expected the contiguous tensor of a Route or Plan, got shape {shown(x.shape)}")


def flattened(x: Tensor) -> Tensor:
    """[T, ...] -> contiguous [T, H]; the tensor itself if it is that already."""
    return x.contiguous() if x.dim() == 2 else x.reshape(x.size(0), math.prod(x.shape[1:])).contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
