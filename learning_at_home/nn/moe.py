"""`MoE`: a mixture of experts of this process, as a layer.

T tokens, H hidden, F inner, E experts, R rows, k choices; names end in their shape.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from learning_at_home import ops
from learning_at_home.errors import InvalidArgument
from learning_at_home.nn.balance import balance_loss, z_loss
from learning_at_home.nn.router import GridRouter


class Experts(nn.Module):
    """Feed-forward experts of one shape, with a gated activation and without bias: out(silu(gate(x)) * up(x)).

    Args:
        num_experts: E. hidden: H. inner: F.

    Attributes:
        w_in: [E, H, 2 * F], gate and up side by side. w_out: [E, F, H].
    """

    def __init__(self, num_experts: int, hidden: int, inner: int):
        super().__init__()
        for name, value in (("num_experts", num_experts), ("hidden", hidden), ("inner", inner)):
            if value < 1:
                raise InvalidArgument(f"{name}: expected 1 or more, got {value}")
        self.num_experts, self.hidden, self.inner = num_experts, hidden, inner
        self.w_in = nn.Parameter(torch.empty(num_experts, hidden, 2 * inner))
        self.w_out = nn.Parameter(torch.empty(num_experts, inner, hidden))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Uniform in +-1/sqrt(fan-in), as `nn.Linear`."""
        for weight in (self.w_in, self.w_out):
            nn.init.uniform_(weight, -(weight.size(1) ** -0.5), weight.size(1) ** -0.5, generator=generator)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """(w_in, w_out) as the products take them."""
        return self.w_in, self.w_out

    def forward(self, rows: Tensor, offset: Tensor, weight: Tensor | None = None) -> Tensor:
        """[R, H] of `ops.dispatch` -> [R, H]; under autocast in its dtype. Rows nobody owns become anything.

        Args:
            offset: int32 [E + 1] of the rows' plan.
            weight: [R], a factor of each row; None: 1.
        """
        w_in, w_out = self.matrices()
        device = rows.device.type
        if torch.is_autocast_enabled(device):
            low = torch.get_autocast_dtype(device)
            rows, w_in, w_out = rows.to(low), w_in.to(low), w_out.to(low)
        gated = ops.swiglu(ops.grouped_mm(rows, w_in, offset), weight)
        return ops.grouped_mm(gated, w_out, offset)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, hidden={self.hidden}, inner={self.inner}"


class RouterLosses(NamedTuple):
    """Losses to add to yours, each times a small weight (0.01 and 0.001 are usual), and what `update_bias` needs.

    balance, z: scalars, differentiable. assigned: [E], how many choices fell on each expert.
    """

    balance: Tensor
    z: Tensor
    assigned: Tensor


def router_losses(route: ops.Route) -> RouterLosses:
    """The losses of a route with statistics."""
    return RouterLosses(balance_loss(route.stats), z_loss(route.lse), route.stats[0].detach())


class MoE(nn.Module):
    """Routes each token to its k best experts and mixes what they return, weighted by their normalised scores.

        MoE(Router(hidden=512, num_experts=64, k=2), inner=1024)

    Args:
        router: chooses the experts; it knows their number and the size of a token.
        inner: inner width of an expert.

    Attributes:
        router: the same. experts: `Experts`.
    """

    def __init__(self, router: GridRouter, inner: int):
        super().__init__()
        self.router = router
        self.experts = Experts(router.num_experts, router.hidden, inner)

    @overload
    def forward(self, x: Tensor, alive: Tensor | None = None, *, want_losses: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, alive: Tensor | None = None, *, want_losses: Literal[True]
    ) -> tuple[Tensor, RouterLosses]: ...
    def forward(
        self, x: Tensor, alive: Tensor | None = None, *, want_losses: bool = False
    ) -> Tensor | tuple[Tensor, RouterLosses]:
        """[..., H] -> [..., H]. A token without an expert, or whose experts are all full, gets zeros.

        Args:
            alive: of `ops.alive_bitmap`: experts that may be chosen; None: all.
            want_losses: return (output, `RouterLosses`).

        Raises:
            InvalidArgument: x has another last size than `hidden`.
        """
        if x.dim() == 0 or x.shape[-1] != self.router.hidden:
            raise InvalidArgument(f"x: expected [..., {self.router.hidden}], got {list(x.shape)}")
        x_TH = x.reshape(-1, self.router.hidden)
        route = self.router(x_TH, alive, want_losses=want_losses)
        rows_RH, _ = ops.dispatch(x_TH, route.index, route.rank, route.offset)
        rows_RH = self.experts(rows_RH, route.offset)
        plan = (route.index, route.rank, route.offset)
        out_TH, _ = ops.combine(rows_RH, route.score, *plan, normalize=self.router.normalize)
        out = out_TH.view(x.shape)
        return (out, router_losses(route)) if want_losses else out
