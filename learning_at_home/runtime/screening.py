"""Numbers that must not reach an expert: NaN, infinity, and rows whose norm is above a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    if not batch or bool(torch.stack([_looks_good(screened) for screened in batch]).all()):
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
    values = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    values = [tensor for tensor in values if tensor.numel() > 0]
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in values:
        by_device.setdefault(tensor.device, []).append(tensor)
    return all(_group_finite(group) for group in by_device.values())


def _group_finite(tensors: list[Tensor]) -> bool:
    # Norms are several times faster than isfinite(). They may overflow where the elements do not: then look closely.
    norms = torch._foreach_norm(tensors)
    if bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _looks_good(screened: Screened) -> Tensor:
    """A bool [] that is False if a row is bad, and rarely also when a sum of good rows overflows."""
    if screened.max_norm is not None:
        return (_row_norms(screened.tensor) <= screened.max_norm).all()
    return screened.tensor.sum(dtype=_wide(screened.tensor)).isfinite()


def _row_norms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(_by_row(tensor), dim=1, dtype=_wide(tensor))


def _by_row(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
