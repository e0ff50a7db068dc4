"""One routing with its rows, and what its eager twin knows of it: arguments of the benchmarks of movement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learning_at_home import ops


@dataclass(frozen=True)
class Routed:
    """T tokens, k choices, H hidden, R = T * k rows."""

    x: Tensor  # [T, H]
    grad: Tensor  # [T, H], of the output of combine
    index: Tensor
    score: Tensor
    rank: Tensor
    offset: Tensor
    rows: Tensor  # [R, H]
    weight: Tensor  # [T, k], of combine
    position: Tensor  # int64 [T, k]: the row of each assignment
    token: Tensor  # int64 [R]: the token of each row

    @classmethod
    def make(
        cls,
        tokens: int,
        experts: int,
        k: int,
        hidden: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Routed:
        """A routing by random logits."""
        x, grad = torch.randn(2, tokens, hidden, device=device).to(dtype)
        index, score, rank, offset, _, _ = ops.route_grid(torch.randn(tokens, experts, device=device), (experts,), k)
        rows, source = ops.dispatch(x, index, rank, offset)
        weight = ops.combine(rows, score, index, rank, offset)[1]
        position = offset[index.long()].long() + rank
        return cls(x, grad, index, score, rank, offset, rows, weight, position, source.long() // k)

    @property
    def plan(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three tensors that say where rows are."""
        return self.index, self.rank, self.offset

    @property
    def name(self) -> str:
        """Sizes and dtype, in short."""
        tokens, k = self.index.shape
        return f"T={tokens} k={k} H={self.x.size(1)} {str(self.x.dtype).removeprefix('torch.')}"

    def row_bytes(self) -> float:
        """Bytes of one row for every token: T * H elements."""
        return float(self.x.numel() * self.x.element_size())
