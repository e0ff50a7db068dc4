"""Rows between the ranks of a process group, and their gradients back: what `ExpertParallelMoE` says to the others.

A token crosses once to each peer (rank of the group) that owns any of its experts, is expanded there to a row for each
of these experts, and comes back as one row, their sum. The two halves of each step are each other's backward.

T tokens, H hidden, k choices, W peers, N rows that arrived, A rows of this rank's experts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from learning_at_home import ops


class Layout(NamedTuple):
    """Where copies of tokens lie: the j-th of token t in row offset[index[t, j]] + rank[t, j], none where rank is -1.

    Attributes:
        index, rank: int32 [T, k]. offset: int32 [E + 1].
        source: int64 [rows], t * k + j of the copy in each row; -1 where there is none.
    """

    index: Tensor  # type: ignore[assignment] # hides tuple.index
    rank: Tensor
    offset: Tensor
    source: Tensor

    def spread(self, x: Tensor) -> Tensor:
        """[T, H] -> [rows, H]; rows without a copy hold anything that x holds."""
        return x.index_select(0, self.source.clamp(min=0) // self.index.size(1))

    def sum(self, rows: Tensor) -> Tensor:
        """[rows, H] -> [T, H], the sum of each token's copies, in float32 at least; other rows are not read."""
        return torch.ops.learning_at_home.dispatch_backward(rows.contiguous(), self.index, self.rank, self.offset)

    def position(self) -> Tensor:
        """int64 [T, k], the row of each copy; one past the last where there is none."""
        return positions(self.index, self.rank, self.offset, len(self.source))


def positions(index: Tensor, rank: Tensor, offset: Tensor, rows: int) -> Tensor:
    """int64 [T, k], the row of each copy; `rows` where there is none."""
    absent = rank < 0
    return (offset[index.masked_fill(absent, 0).long()] + rank).masked_fill(absent, rows).long()


def lay_out(index: Tensor, rank: Tensor, offset: Tensor, rows: int) -> Layout:
    """The layout of a plan's copies in so many rows."""
    position = positions(index, rank, offset, rows).flatten()
    source = position.new_full([rows + 1], -1)  # the last one takes all that have no row
    source.scatter_(0, position, torch.arange(len(position), device=position.device))
    return Layout(index, rank, offset, source[:rows])


class Crossing(NamedTuple):
    """One way of rows to their peers and back.

    Attributes:
        layout: of the rows that leave, by peer. arriving: N. assignments: A, or what it can be at most.
        sent, received: rows to and from each peer; None: equal shares, known without asking.
    """

    layout: Layout
    arriving: int
    assignments: int
    sent: list[int] | None
    received: list[int] | None
    group: dist.ProcessGroup | None

    def there(self, rows: Tensor) -> Tensor:
        """[rows, H] -> [N, H]."""
        out = rows.new_empty(self.arriving, *rows.shape[1:])
        dist.all_to_all_single(out, rows, self.received, self.sent, group=self.group)
        return out

    def back(self, rows: Tensor) -> Tensor:
        """[N, H] -> [rows, H]."""
        out = rows.new_empty(len(self.layout.source), *rows.shape[1:])
        dist.all_to_all_single(out, rows.contiguous(), self.sent, self.received, group=self.group)
        return out


def peers_of(owner: Tensor, peers: int) -> Tensor:
    """int32 [T, k], the peer of each choice (-1: none) -> int32 [T, min(k, W)], each peer of a token once, -1 else."""
    peer = owner.sort(dim=1, descending=True).values
    peer[:, 1:] = torch.where(peer[:, 1:] == peer[:, :-1], -1, peer[:, 1:])
    if peer.size(1) > peers:
        peer = peer.sort(dim=1, descending=True).values[:, :peers]
    return peer.contiguous()


def cross_by_counts(owner: Tensor, peers: int, group: dist.ProcessGroup | None) -> Crossing:
    """Nothing is dropped: ranks tell each other how many rows come. The host waits for the device once.

    Args:
        owner: int32 [T, k], the peer of each choice; -1: none. peers: W.
    """
    peer = peers_of(owner, peers)
    plan = ops.plan(peer, peers)
    outgoing = torch.stack([plan.count, ops.plan(owner, peers).count], dim=1)
    incoming = torch.empty_like(outgoing)
    dist.all_to_all_single(incoming, outgoing, group=group)
    sent, received, assignments = torch.stack([outgoing[:, 0], incoming[:, 0], incoming[:, 1]]).tolist()
    layout = lay_out(peer, plan.rank, plan.offset, sum(sent))
    return Crossing(layout, sum(received), sum(assignments), sent, received, group)


def cross_in_equal_shares(
    owner: Tensor, peers: int, group: dist.ProcessGroup | None, *, capacity_factor: float, experts: int
) -> tuple[Crossing, Tensor]:
    """Every rank sends C = ceil(capacity_factor * T * min(k, W) / W) rows to every peer, at most T; a peer's first C
    tokens cross. Shapes follow from those of owner, which must be the same on all ranks; nothing waits for the device.

    Args:
        owner: as above. experts: of each rank.

    Returns:
        The crossing, and bool [T, k]: the choices whose token crosses to them.
    """
    tokens, k = owner.shape
    peer = peers_of(owner, peers)
    share = min(tokens, math.ceil(capacity_factor * tokens * peer.size(1) / peers))
    plan = ops.plan(peer, peers, capacity=share)
    kept = ((owner[:, :, None] == peer[:, None, :]) & (plan.rank >= 0)[:, None, :]).any(2)
    offset = torch.arange(peers + 1, dtype=torch.int32, device=owner.device) * share
    rows = peers * share
    layout = lay_out(peer, plan.rank, offset, rows)
    return Crossing(layout, rows, rows * min(k, experts), None, None, group), kept


def send(x: Tensor, weight: Tensor, index: Tensor, crossing: Crossing) -> tuple[Tensor, Tensor, Tensor]:
    """Send tokens to their peers, with the weights and ids of all their choices.

    Args:
        x: [T, H]; differentiable. weight: [T, k], float32 or float64; differentiable.
        index: int32 [T, k], expert ids; -1: void.

    Returns:
        The same of the N tokens that arrived; rows that nobody sent have no choice but void ones.
    """
    return _Send.apply(x, weight, index, crossing)


def give_back(rows: Tensor, crossing: Crossing) -> Tensor:
    """[N, H] -> [T, H]: the sum of what a token's peers give back for it; differentiable."""
    return _GiveBack.apply(rows, crossing)


def expand(x: Tensor, weight: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """([N, H], [N, k]) -> ([A, H], [A]): the row and the weight of each choice; differentiable."""
    return _Expand.apply(x, weight, layout)


def collapse(rows: Tensor, layout: Layout) -> Tensor:
    """[A, H] -> [N, H]: the sum of each token's rows; differentiable."""
    return _Collapse.apply(rows, layout)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, index: Tensor, crossing: Crossing) -> Any:
        ctx.crossing = crossing
        layout, k = crossing.layout, index.size(1)
        # One message for ids and weights; 0 is void, which is what rows without a copy are filled with.
        beside = torch.cat([index + 1, weight.contiguous().view(torch.int32)], dim=1)
        beside = layout.spread(beside).masked_fill(layout.source[:, None] < 0, 0)
        x_there, beside = crossing.there(layout.spread(x)), crossing.there(beside)
        index_there, weight_there = beside[:, :k] - 1, beside[:, k:].contiguous().view(weight.dtype)
        ctx.mark_non_differentiable(index_there)
        return x_there, weight_there, index_there

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_weight: Tensor, _index: Any) -> Any:
        # Both, whoever needs them: ranks that leave one out would leave the others waiting.
        grads = (ctx.crossing.layout.sum(ctx.crossing.back(grad)) for grad in (grad_x, grad_weight))
        return (*grads, None, None)


class _GiveBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, crossing: Crossing) -> Tensor:
        ctx.crossing = crossing
        return crossing.layout.sum(crossing.back(rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.crossing.there(ctx.crossing.layout.spread(grad)), None


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layout: Layout) -> Any:
        ctx.layout = layout
        return layout.spread(x), weight.flatten().index_select(0, layout.source.clamp(min=0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_weight: Tensor) -> Any:
        position = ctx.layout.position()
        grad_choice = torch.nn.functional.pad(grad_weight, (0, 1))[position]  # the row after the last one is zero
        return ctx.layout.sum(grad_rows), grad_choice, None


class _Collapse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return layout.sum(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.layout.spread(grad), None
