"""`ExpertParallelMoE`: the mixture of `MoE` with its experts spread over the ranks of a process group.

    # torchrun --nproc-per-node 4 train.py
    import torch, torch.distributed as dist
    from learning_at_home.nn import ExpertParallelMoE, Router, data_parallel

    dist.init_process_group("gloo")  # "nccl" on GPUs, a device for each rank
    layer = ExpertParallelMoE(Router(hidden=512, num_experts=64, k=2), inner=1024)  # 16 experts here
    model = data_parallel(layer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.manual_seed(dist.get_rank())
    for _ in range(100):
        x = torch.randn(256, 512)  # every rank has tokens of its own
        out, losses = model(x, want_losses=True)
        loss = (out - x).square().mean() + 0.01 * losses.balance + 0.001 * losses.z
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dist.destroy_process_group()

Gradients. What is trained is the mean of the ranks' losses, as in `DistributedDataParallel`. Where all ranks have as
many tokens, that is the loss of one process with all their tokens; where not, weight each rank's mean over its tokens
by W * T / (tokens of all ranks). Experts' gradients are complete when `backward` returns, as they come from all ranks
already; those of all else, the router's too, are local and must be averaged over the ranks: `data_parallel` does that,
and leaves out the experts. The two losses are those of the tokens of all ranks, the same number on every rank, and
every rank must add them with the same weight. `losses.assigned` is also of all ranks, as `Router.update_bias` takes it.

All ranks of the group take part in each forward and each backward, also one without tokens. If one dies, the others
get the error of torch.distributed, at the latest after the timeout of the group.

T tokens, H hidden, F inner, E experts, k choices, W ranks; names end in their shape.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from learning_at_home import ops
from learning_at_home.errors import InvalidArgument
from learning_at_home.nn.balance import balance_loss
from learning_at_home.nn.moe import Experts, MoE, RouterLosses
from learning_at_home.nn.router import GridRouter
from learning_at_home.nn.token_exchange import (
    collapse,
    cross_by_counts,
    cross_in_equal_shares,
    expand,
    give_back,
    lay_out,
    send,
)


class RankExperts(Experts):
    """The experts of one rank. Gradients arrive from all `ranks`, each that of its own loss: their mean is kept."""

    def __init__(self, num_experts: int, hidden: int, inner: int, ranks: int):
        super().__init__(num_experts, hidden, inner)
        self.ranks = ranks

    def matrices(self) -> tuple[Tensor, Tensor]:
        """(w_in, w_out)."""
        return _ScaleGradient.apply(self.w_in, 1 / self.ranks), _ScaleGradient.apply(self.w_out, 1 / self.ranks)


class ExpertParallelMoE(nn.Module):
    """`MoE` over a process group of W ranks: rank r owns experts r * E / W up to (r + 1) * E / W.

    A token crosses once to each rank that owns any of its experts, and one row comes back, the weighted sum. The router
    is on every rank; when the layer is made, that of the group's first rank is copied to the others. Experts are drawn
    apart on every rank, also if all ranks have the same seed; `from_local` takes them from an `MoE`. A rank's
    `state_dict` holds the router and its own experts. Under autocast rows cross in its dtype.

    Args:
        router: chooses the experts; it knows their number and the size of a token. Its capacity is a rank's: an expert
            takes as many rows from each rank as it would from that rank alone.
        inner: inner width of an expert.
        process_group: None: the default group.
        peer_capacity: None, the default: nothing is dropped; ranks tell each other how many rows come, for which the
            host waits for the device once a forward. f: static shapes, no waiting, for CUDA graphs: every rank sends
            exactly C = ceil(f * T * min(k, W) / W) rows, but no more than T, to each rank. Of the tokens for a rank the
            first C cross; choices of further ones are void, and the weights are made of those left. T must then be the
            same on all ranks. On CUDA nothing waits where `ops.grouped_mm` does not. `torch.compile` takes such a layer
            whole; of one that drops nothing it leaves what lies between routing and losses as it is.

    Attributes:
        router: the same. experts: `Experts`, those of this rank. first: id of its first expert.

    Raises:
        InvalidArgument: E does not divide by W, peer_capacity is not positive, or this process is not in the group.
    """

    def __init__(
        self,
        router: GridRouter,
        inner: int,
        process_group: dist.ProcessGroup | None = None,
        *,
        peer_capacity: float | None = None,
    ):
        super().__init__()
        rank, self.ranks = _place_in(process_group)
        if router.num_experts % self.ranks:
            raise InvalidArgument(
                f"router: expected experts that divide by the {self.ranks} ranks of the group, got {router.num_experts}"
            )
        if peer_capacity is not None and not 0 < peer_capacity < math.inf:
            raise InvalidArgument(f"peer_capacity: expected a positive number or None, got {peer_capacity}")
        self.router, self.process_group, self.peer_capacity = router, process_group, peer_capacity
        owned = router.num_experts // self.ranks
        self.first = rank * owned
        self.experts = RankExperts(owned, router.hidden, inner, self.ranks)
        seed = int(torch.randint(2**62, ())) + rank  # ranks may well have the same seed; their experts must differ
        self.experts.reset_parameters(torch.Generator(self.experts.w_in.device).manual_seed(seed))
        for tensor in (*router.parameters(), *router.buffers()):
            _copy_from_first(tensor.detach(), process_group)

    @classmethod
    def from_local(
        cls, moe: MoE, process_group: dist.ProcessGroup | None = None, *, peer_capacity: float | None = None
    ) -> ExpertParallelMoE:
        """The layer that computes what `moe` does, which must be the same on all ranks; each copies its own experts."""
        layer = cls(copy.deepcopy(moe.router), moe.experts.inner, process_group, peer_capacity=peer_capacity)
        layer.experts.to(moe.experts.w_in)
        with torch.no_grad():
            for mine, whole in zip(layer.experts.parameters(), moe.experts.parameters(), strict=True):
                mine.copy_(whole[layer.first : layer.first + len(mine)])
        return layer

    @overload
    def forward(self, x: Tensor, alive: Tensor | None = None, *, want_losses: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, alive: Tensor | None = None, *, want_losses: Literal[True]
    ) -> tuple[Tensor, RouterLosses]: ...
    def forward(
        self, x: Tensor, alive: Tensor | None = None, *, want_losses: bool = False
    ) -> Tensor | tuple[Tensor, RouterLosses]:
        """[..., H] -> [..., H], this rank's tokens. One without an expert, or whose experts are all full, gets zeros.

        Args:
            alive: of `ops.alive_bitmap`, all E experts; None: all.
            want_losses: return (output, `RouterLosses`); on all ranks or on none.

        Raises:
            InvalidArgument: x has another last size than `hidden`.
        """
        if x.dim() == 0 or x.shape[-1] != self.router.hidden:
            raise InvalidArgument(f"x: expected [..., {self.router.hidden}], got {list(x.shape)}")
        x_TH = x.reshape(-1, self.router.hidden)
        route = self.router(x_TH, alive, want_losses=want_losses)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x_TH = x_TH.to(torch.get_autocast_dtype(device))
        # The compiler gives up on shapes that other ranks decide: it leaves this part alone.
        given_up = self.peer_capacity is None and torch.compiler.is_compiling()
        mix = torch.compiler.disable(self._mix) if given_up else self._mix
        out = mix(x_TH, route).view(x.shape)
        return (out, losses_of_all_ranks(route, self.process_group, self.ranks)) if want_losses else out

    def _mix(self, x_TH: Tensor, route: ops.Route) -> Tensor:
        owned = self.experts.num_experts
        index_TK = route.index.masked_fill(route.rank < 0, -1)  # the router's capacity
        owner_TK = index_TK // owned  # rounds down: -1 stays
        if self.peer_capacity is None:
            crossing = cross_by_counts(owner_TK, self.ranks, self.process_group)
        else:
            crossing, kept_TK = cross_in_equal_shares(
                owner_TK, self.ranks, self.process_group, capacity_factor=self.peer_capacity, experts=owned
            )
            index_TK = index_TK.masked_fill(~kept_TK, -1)
        weight_TK = weights_of_live(route.score, index_TK >= 0, self.router.normalize)
        x_NH, weight_NK, index_NK = send(x_TH, weight_TK, index_TK, crossing)
        mine_NK = index_NK - self.first
        mine_NK = mine_NK.masked_fill((mine_NK < 0) | (mine_NK >= owned), -1)  # the other choices are of other ranks
        plan = ops.plan(mine_NK, owned)
        layout = lay_out(mine_NK, plan.rank, plan.offset, crossing.assignments)
        rows_AH, weight_A = expand(x_NH, weight_NK, layout)
        rows_AH = self.experts(rows_AH, plan.offset, weight_A)
        return give_back(collapse(rows_AH, layout), crossing)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertParallelMoE:
        """A copy with parameters of its own, over the same ranks."""
        memo[id(self.process_group)] = self.process_group
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin

    def extra_repr(self) -> str:
        last = self.first + self.experts.num_experts - 1
        return f"experts {self.first} to {last}, ranks={self.ranks}, peer_capacity={self.peer_capacity}"


def data_parallel(
    model: nn.Module, process_group: dist.ProcessGroup | None = None, **options: Any
) -> DistributedDataParallel:
    """`DistributedDataParallel` of a model that may hold `ExpertParallelMoE` layers: their experts stay each rank's
    own, neither copied nor averaged; all else is.

    The norm of all gradients, to clip them, is not a rank's own either: sum the squares of its experts' over the ranks.

    Args:
        model: its layers are over the same group. options: of `DistributedDataParallel`.

    Raises:
        InvalidArgument: a layer is over other ranks.
    """
    ranks, ignored = dist.get_process_group_ranks(process_group), []
    for name, module in model.named_modules():
        if not isinstance(module, ExpertParallelMoE):
            continue
        theirs = dist.get_process_group_ranks(module.process_group)
        if theirs != ranks:
            raise InvalidArgument(f"process_group: expected the ranks {theirs} of layer {name!r}, got {ranks}")
        prefix = f"{name}.experts." if name else "experts."
        ignored += [prefix + parameter for parameter, _ in module.experts.named_parameters()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    return DistributedDataParallel(model, process_group=process_group, **options)


def _place_in(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """(rank, number of ranks)."""
    if not dist.is_available() or not dist.is_initialized():
        raise InvalidArgument("process_group: expected torch.distributed to be initialized (init_process_group)")
    rank = dist.get_rank(group)
    if rank < 0:
        raise InvalidArgument("process_group: expected a group that this process is in")
    return rank, dist.get_world_size(group)


def _copy_from_first(tensor: Tensor, group: dist.ProcessGroup | None) -> None:
    """Overwrite it with that of the group's first rank."""
    on_device = tensor.cuda() if dist.get_backend(group) == "nccl" else tensor  # NCCL carries nothing else
    on_device = on_device.contiguous()
    dist.broadcast(on_device, group=group, group_src=0)
    if on_device is not tensor:
        tensor.copy_(on_device)


def weights_of_live(score: Tensor, live: Tensor, normalize: str) -> Tensor:
    """The weights that `ops.combine` makes, [T, k]; differentiable. No NaN on the way where a token has nothing live.

    Args:
        live: bool [T, k]. normalize: "softmax" or "sum".
    """
    if normalize == "softmax":
        lowest = torch.finfo(score.dtype).min
        return score.masked_fill(~live, lowest).softmax(dim=1).masked_fill(~live, 0.0)
    weight = score.masked_fill(~live, 0.0)
    total = weight.sum(dim=1, keepdim=True)
    return weight / total.masked_fill(total == 0, 1.0)


def losses_of_all_ranks(route: ops.Route, group: dist.ProcessGroup | None, ranks: int) -> RouterLosses:
    """`router_losses` of all ranks' tokens together, the same on every rank."""
    tokens, experts = len(route.lse), route.stats.size(1)
    assigned, probability = route.stats
    square = route.lse.square().sum()
    mine = torch.cat([assigned, probability * tokens, torch.stack([square, torch.full_like(square, tokens)])])
    assigned, probability, (square, tokens_of_all) = _SumOfRanks.apply(mine, group, ranks).split([experts, experts, 2])
    tokens_of_all = tokens_of_all.clamp(min=1)
    stats = torch.stack([assigned, probability / tokens_of_all])
    return RouterLosses(balance_loss(stats), square / tokens_of_all, assigned.detach())


class _SumOfRanks(torch.autograd.Function):
    """Of W ranks that all add the same loss of this sum to their own, so that the sum of their losses has W times the
    gradient of one; the router's are averaged afterwards.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None, ranks: int) -> Tensor:
        ctx.ranks = ranks
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.ranks, None, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.factor, None
