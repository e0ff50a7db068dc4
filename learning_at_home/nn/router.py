"""Routers: which experts each token goes to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learning_at_home import ops
from learning_at_home.errors import InvalidArgument
from learning_at_home.ops.arguments import MAX_CHOICES, MAX_EXPERTS, MAX_GRID_DIMS


def checked_grid(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of a grid's axes, or raise InvalidArgument naming the argument."""
    grid = tuple(int(size) for size in sizes)
    if not 1 <= len(grid) <= MAX_GRID_DIMS or min(grid) < 1 or math.prod(grid) > MAX_EXPERTS:
        raise InvalidArgument(
            f"{name}: expected 1 to {MAX_GRID_DIMS} positive sizes with a product of at most {MAX_EXPERTS}, got {grid}"
        )
    return grid


def full_precision(proj: nn.Linear, x: Tensor) -> Tensor:
    """Logits in float32, also under autocast: half precision would change the choice for one token in twenty."""
    with torch.autocast(x.device.type, enabled=False):
        return proj(x.to(proj.weight.dtype)).float()


class GridRouter(nn.Module):
    """Chooses the k best experts of a product grid for each token (product keys: Lample et al. 2019).

    Expert (i1, ..., id) scores s1[i1] + ... + sd[id], consecutive slices of one linear layer: `sum(grid)` logits for
    `prod(grid)` experts. Logits are float32, also under autocast.

    Args:
        hidden: size of a token.
        grid: sizes of 1 to 8 axes, at most 65536 experts in all.
        k: experts a token, 1 to 32.
        capacity_factor: an expert takes at most ceil(capacity_factor * T * k / E) rows, further ones are dropped;
            None, the default, drops none.

    Attributes:
        proj: the linear layer, without bias.

    Raises:
        InvalidArgument: an argument out of range.
    """

    def __init__(self, hidden: int, grid: Sequence[int], k: int, *, capacity_factor: float | None = None):
        super().__init__()
        self.hidden, self.grid, self.k = hidden, checked_grid("grid", grid), k
        if hidden < 1:
            raise InvalidArgument(f"hidden: expected 1 or more, got {hidden}")
        if not 1 <= k <= MAX_CHOICES:
            raise InvalidArgument(f"k: expected 1 to {MAX_CHOICES}, got {k}")
        if capacity_factor is not None and not 0 < capacity_factor < math.inf:
            raise InvalidArgument(f"capacity_factor: expected a positive number or None, got {capacity_factor}")
        self.capacity_factor = capacity_factor
        self.proj = nn.Linear(hidden, sum(self.grid), bias=False)

    @property
    def num_experts(self) -> int:
        """E, all cells of the grid."""
        return math.prod(self.grid)

    def forward(self, x: Tensor, alive: Tensor | None = None, *, want_losses: bool = False) -> ops.Route:
        """Route [T, hidden].

        Args:
            alive: of `ops.alive_bitmap`; None: all experts.
            want_losses: also return what `nn.balance` takes: lse and stats.
        """
        logits = full_precision(self.proj, x)
        capacity = 0
        if self.capacity_factor is not None:  # whole numbers only: T may be a symbol of the compiler
            share = math.ceil(self.capacity_factor * self.k * 1024 / self.num_experts)
            capacity = max(1, (len(x) * share + 1023) // 1024)
        return ops.route_grid(logits, self.grid, self.k, alive=alive, capacity=capacity, want_stats=want_losses)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, k={self.k}, capacity_factor={self.capacity_factor}"


class Router(GridRouter):
    """Chooses the k best of `num_experts` experts for each token, by one logit each. Otherwise as `GridRouter`."""

    def __init__(self, hidden: int, num_experts: int, k: int, *, capacity_factor: float | None = None):
        super().__init__(hidden, (num_experts,), k, capacity_factor=capacity_factor)
