"""What the checks of `expert_parallel_rank.py` compare a rank with: one process's `MoE` on the tokens of all ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from learning_at_home import ops
from learning_at_home.errors import InvalidArgument
from learning_at_home.nn import ExpertParallelMoE, GridRouter, MoE, Router, data_parallel

HIDDEN, INNER, EXPERTS = 12, 10, 8


def make(router: type[GridRouter] = Router, experts: Any = EXPERTS, k: int = 3, **options: Any) -> MoE:
    torch.manual_seed(7)
    moe = MoE(router(HIDDEN, experts, k, **options), INNER)
    with torch.no_grad():
        moe.router.proj.weight *= 3  # no two scores nearly the same
    return moe


def tokens_of_ranks(*counts: int) -> list[Tensor]:
    torch.manual_seed(11)
    return [torch.randn(count, HIDDEN, requires_grad=True) for count in counts]


def same(got: Tensor | None, want: Tensor | None, factor: float = 1.0) -> None:
    assert got is not None
    assert want is not None
    torch.testing.assert_close(got, want * factor, rtol=1e-4, atol=1e-6)


def refused(message: str) -> Any:
    return pytest.raises(InvalidArgument, match=message)


def check_gradients(
    moe: MoE, counts: list[int], alive: Tensor | None = None, peer_capacity: float | None = None
) -> None:
    """Outputs, losses and all gradients equal those of one process with the tokens of all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    layer = ExpertParallelMoE.from_local(moe, peer_capacity=peer_capacity)
    model = data_parallel(layer)
    tokens = tokens_of_ranks(*counts)
    target = torch.randn(sum(counts), HIDDEN).split(counts)
    joined = torch.cat([x.detach() for x in tokens]).requires_grad_()
    want, want_losses = moe(joined, alive, want_losses=True)
    loss = (want - torch.cat(target)).square().sum() / sum(counts)
    (loss + 0.3 * want_losses.balance + 0.2 * want_losses.z).backward()

    out, losses = model(tokens[rank], alive, want_losses=True)
    same(out, want.split(counts)[rank])
    for got_loss, want_loss in zip(losses, want_losses, strict=True):  # and assignments
        same(got_loss, want_loss)
    loss = world * (out - target[rank]).square().sum() / sum(counts)  # their mean over ranks is the loss above
    (loss + 0.3 * losses.balance + 0.2 * losses.z).backward()
    same(layer.router.proj.weight.grad, moe.router.proj.weight.grad)
    mine = slice(layer.first, layer.first + EXPERTS // world)
    for got, whole in zip(layer.experts.parameters(), moe.experts.parameters(), strict=True):
        assert whole.grad is not None
        same(got.grad, whole.grad[mine])
    assert joined.grad is not None
    same(tokens[rank].grad, joined.grad.split(counts)[rank], factor=world)


def check_20_steps(moe: MoE, peer_capacity: float | None = None) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    layer = ExpertParallelMoE.from_local(moe, peer_capacity=peer_capacity)
    model = data_parallel(layer)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (moe, model)]
    x = torch.cat(tokens_of_ranks(*[24] * world)).detach()
    target = torch.randn_like(x)
    history: list[tuple[float, float]] = []
    for _ in range(20):
        seen = []
        for m, router, rows, optimizer in (
            (moe, moe.router, slice(None), optimizers[0]),
            (model, layer.router, slice(24 * rank, 24 * rank + 24), optimizers[1]),
        ):
            out, losses = m(x[rows], want_losses=True)
            loss = (out - target[rows]).square().mean() + 0.01 * losses.balance + 0.001 * losses.z
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if isinstance(router, Router) and router.bias is not None:
                router.update_bias(losses.assigned, rate=0.01)
            seen.append(loss.detach())
        dist.all_reduce(seen[1])
        history.append((seen[0].item(), seen[1].item() / world))
    assert history[-1][0] < 0.9 * history[0][0], history
    assert all(abs(got - want) <= 1e-4 * want for want, got in history), history
    for mine, whole in zip(layer.router.buffers(), moe.router.buffers(), strict=True):
        assert mine.any()
        same(mine, whole)


def dropped(moe: MoE, x: Tensor, share: int) -> Tensor:
    """[T, k] ids chosen for x, void where the token is not among the first `share` of a rank."""
    owned, world = EXPERTS // dist.get_world_size(), dist.get_world_size()
    index, sent = moe.router(x).index.clone(), [0] * world
    for choices in index:
        peers = {int(e) // owned for e in choices}
        full = {peer for peer in peers if sent[peer] == share}
        for peer in peers - full:
            sent[peer] += 1
        for j, e in enumerate(choices.tolist()):
            if e // owned in full:
                choices[j] = -1
    return index


def check_small_equal_shares(moe: MoE) -> None:
    """What does not fit is void, as if one process had not chosen it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    layer = ExpertParallelMoE.from_local(moe, peer_capacity=0.5)
    model = data_parallel(layer)
    total, voids = torch.zeros(()), 0
    for r, x in enumerate(tokens_of_ranks(*[17] * world)):
        route = moe.router(x)
        index = dropped(moe, x, -(-17 * min(3, world) // (2 * world)))
        voids += int((index < 0).sum())
        rank_of, offset, _ = ops.plan(index, EXPERTS)
        rows, _ = ops.dispatch(x, index, rank_of, offset)
        rows = moe.experts(rows, offset)
        out, _ = ops.combine(rows, route.score, index, rank_of, offset, normalize=moe.router.normalize)
        total = total + out.square().mean() / world
        if r == rank:
            got = model(x)
            same(got, out)
            got.square().mean().backward()
    assert 0 < voids < 51 * world
    total.backward()
    same(layer.router.proj.weight.grad, moe.router.proj.weight.grad)
    for mine, whole in zip(layer.experts.parameters(), moe.experts.parameters(), strict=True):
        assert whole.grad is not None
        same(mine.grad, whole.grad[layer.first : layer.first + len(mine)])


@contextmanager
def sent_rows(width: int) -> Iterator[list[tuple[int, torch.dtype]]]:
    """(rows, dtype) of every message of this many columns, which goes on as it was."""
    real, seen = dist.all_to_all_single, []

    def spy(out: Tensor, rows: Tensor, *args: Any, **kwargs: Any) -> Any:
        if rows.shape[1:] == (width,) and rows.is_floating_point():
            seen.append((len(rows), rows.dtype))
        return real(out, rows, *args, **kwargs)

    dist.all_to_all_single = spy
    try:
        yield seen
    finally:
        dist.all_to_all_single = real


@contextmanager
def no_host() -> Iterator[None]:
    """Fails where Python asks a tensor for its values, except in grouped_mm, whose loop on CPU does."""

    def refusing(name: str, real: Any) -> Any:
        def read(x: Tensor, *args: Any) -> Any:
            if not sys._getframe(1).f_code.co_filename.endswith("grouped.py"):
                raise BlockingIOError(name)
            return real(x, *args)

        return read

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(Tensor, name, refusing(name, getattr(Tensor, name)))
        yield
