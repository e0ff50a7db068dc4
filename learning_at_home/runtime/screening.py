"""Numbers that must not reach an expert: NaN, infinity, and rows whose norm is above a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor


@dataclass(frozen=True)
class Screened:
    """A floating tensor [rows, ...] of a batch; `max_norm` limits the L2 norm of each row, `limit_name` says whose."""

    name: str
    tensor: Tensor
    max_norm: float | None = None
    limit_name: str = ""


def rows_to_reject(batch: Sequence[Screened]) -> dict[int, str]:
    """Rows that must not be computed: row → what is wrong there, e.g. "input 0 holds NaN or infinite values".

    A good batch costs one reduction a tensor (its sum, or its row norms where there is a limit) and one wait for the
    device; rows are looked at only if that fails.
    """
    batch = [screened for screened in batch if screened.tensor.numel() > 0]
    if not batch or all(isfinite(total) for total in _values([_total(screened) for screened in batch])):
        return {}
    bad: dict[int, str] = {}
    for screened in batch:
        finite = _by_row(screened.tensor).isfinite().all(1)
        for row in (~finite).nonzero().flatten().tolist():
            bad.setdefault(row, f"{screened.name} holds NaN or infinite values")
        if screened.max_norm is None:
            continue
        norms = _row_norms(screened.tensor)
        for row in (finite & (norms > screened.max_norm)).nonzero().flatten().tolist():
            bad.setdefault(
                row,
                f"{screened.name} has an L2 norm of {norms[row].item():.4g}, "
                f"above {screened.limit_name}={screened.max_norm:g}",
            )
    return bad


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """True if no element of these strided or sparse tensors is NaN or infinite."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        values = tensor.coalesce().values() if tensor.is_sparse else tensor
        if values.numel() > 0:
            groups.setdefault((values.device, values.dtype), []).append(values)
    return all(_group_finite(group) for group in groups.values())


def _group_finite(tensors: list[Tensor]) -> bool:
    # Norms are several times faster than isfinite(). They may overflow where the elements do not: then look closely.
    if isfinite(torch.stack(torch._foreach_norm(tensors)).sum().item()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _total(screened: Screened) -> Tensor:
    """A number that is finite only if the rows are good. Rarely, a sum of good rows overflows."""
    if screened.max_norm is None:
        return screened.tensor.sum(dtype=_wide(screened.tensor))
    largest = _row_norms(screened.tensor).amax()
    return torch.where(largest <= screened.max_norm, largest, torch.inf)


def _values(numbers: list[Tensor]) -> list[float]:
    """With one wait for the device."""
    return [number.item() for number in numbers] if numbers[0].device.type == "cpu" else torch.stack(numbers).tolist()


def _row_norms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(_by_row(tensor), dim=1, dtype=_wide(tensor))


def _by_row(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
