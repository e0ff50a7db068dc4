"""Routers: which experts each token goes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from learning_at_home import ops
from learning_at_home.errors import InvalidArgument
from learning_at_home.ops import arguments
from learning_at_home.ops.arguments import MAX_CHOICES, MAX_GROUPS
from learning_at_home.ops.reference import unpack_alive
from learning_at_home.ops.routing import SCORES


def checked_grid(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of a grid's axes, or raise InvalidArgument naming the argument."""
    try:
        return tuple(arguments.checked_grid(name, sizes))
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def full_precision(proj: nn.Linear, x: Tensor) -> Tensor:
    """Logits in float32, also under autocast and of half-precision weights: half precision would change the choice for
    one token in twenty.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(proj.weight.dtype, torch.float32)
        bias = None if proj.bias is None else proj.bias.to(wide)
        return nn.functional.linear(x.to(wide), proj.weight.to(wide), bias).float()


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

    @property
    def normalize(self) -> Literal["softmax", "sum"]:
        """How `ops.combine` makes weights of the scores."""
        return "softmax"

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
        return self.choose(logits, alive, capacity, want_losses)

    def choose(self, logits: Tensor, alive: Tensor | None, capacity: int, want_stats: bool) -> ops.Route:
        """Route tokens by their logits, [T, sum(grid)] in float32."""
        return ops.route_grid(logits, self.grid, self.k, alive=alive, capacity=capacity, want_stats=want_stats)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, k={self.k}, capacity_factor={self.capacity_factor}"


class Router(GridRouter):
    """Chooses the k best of `num_experts` experts for each token, by one logit each.

    Args:
        score: "softmax": weights are a softmax over the chosen logits; "sigmoid": the chosen logits' sigmoids, divided
            by their sum (DeepSeek-V3, DeepSeek-AI 2024).
        groups, top_groups: choose only among the experts of the best groups, see `ops.route`.
        balance_bias: keep a bias of each expert that steers the choice but no weight, see `update_bias`.
        hidden, num_experts, k, capacity_factor: as of `GridRouter`.

    Attributes:
        bias: float32 [E] buffer, or None.

    Raises:
        InvalidArgument: an argument out of range.
    """

    def __init__(
        self,
        hidden: int,
        num_experts: int,
        k: int,
        *,
        score: Literal["softmax", "sigmoid"] = "softmax",
        groups: int = 1,
        top_groups: int = 1,
        balance_bias: bool = False,
        capacity_factor: float | None = None,
    ):
        super().__init__(hidden, (num_experts,), k, capacity_factor=capacity_factor)
        if score not in SCORES:
            raise InvalidArgument(f"score: expected one of {', '.join(SCORES)}, got {score!r}")
        if not 1 <= groups <= MAX_GROUPS or num_experts % groups:
            raise InvalidArgument(f"groups: expected 1 to {MAX_GROUPS}, a divisor of {num_experts}, got {groups}")
        if not 1 <= top_groups <= groups:
            raise InvalidArgument(f"top_groups: expected 1 to {groups}, got {top_groups}")
        self.score, self.groups, self.top_groups = score, groups, top_groups
        self.bias: Tensor | None
        self.register_buffer("bias", torch.zeros(num_experts) if balance_bias else None)

    @property
    def normalize(self) -> Literal["softmax", "sum"]:
        return "softmax" if self.score == "softmax" else "sum"

    def choose(self, logits: Tensor, alive: Tensor | None, capacity: int, want_stats: bool) -> ops.Route:
        return ops.route(
            logits,
            self.k,
            alive=alive,
            bias=self.bias,
            score=self.score,
            groups=self.groups,
            top_groups=self.top_groups,
            capacity=capacity,
            want_stats=want_stats,
        )

    @torch.no_grad()
    def update_bias(self, assigned: Tensor, rate: float = 1e-3, *, alive: Tensor | None = None) -> None:
        """Raise the bias of experts with fewer assignments than the mean by `rate`, lower that of the others.

        Balances without a loss (Wang et al. 2024); call it once a training step.

        Args:
            assigned: [E], assignments of this step's tokens: `RouterLosses.assigned`, summed over all processes.
            alive: of `ops.alive_bitmap`, as the tokens were routed with; the dead keep their bias. None: all experts.

        Raises:
            InvalidArgument: a router without `balance_bias`.
        """
        if self.bias is None:
            raise InvalidArgument("balance_bias: this router was made without")
        assigned = assigned.to(self.bias)
        counted = torch.ones_like(assigned) if alive is None else unpack_alive(alive, self.num_experts).to(assigned)
        mean = (assigned * counted).sum() / counted.sum().clamp(min=1)
        self.bias += rate * counted * (mean - assigned).sign()

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, k={self.k}, score={self.score!r}, capacity_factor={self.capacity_factor}"
        )
