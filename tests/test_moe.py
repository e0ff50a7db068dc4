"""`MoE`: the same values, gradients and training as a dense mixture; capacity, the dead, autocast and the compiler."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learning_at_home import ops
from learning_at_home.errors import InvalidArgument
from learning_at_home.nn import Experts, GridRouter, MoE, Router

HIDDEN, INNER = 12, 10


def dense(moe: MoE, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(output, balance loss, z-loss), with every expert on every token."""
    router, experts = moe.router, moe.experts
    first, *rest = router.proj(x).split(router.grid, dim=1)
    for axis in rest:
        first = (first.unsqueeze(2) + axis.unsqueeze(1)).flatten(1)
    score = first if mask is None else first.masked_fill(~mask, -math.inf)
    best, index = score.topk(router.k, dim=1)
    gate, up = torch.einsum("th,ehf->tef", x, experts.w_in).chunk(2, dim=2)
    y = torch.einsum("tef,efh->teh", nn.functional.silu(gate) * up, experts.w_out)
    chosen = y.gather(1, index[:, :, None].expand(-1, -1, x.size(1)))
    out = (best.softmax(1)[:, :, None] * chosen).sum(1)
    used = nn.functional.one_hot(index, score.size(1)).sum((0, 1)) / index.numel()
    balance = score.size(1) * (used * score.softmax(1).mean(0)).sum()
    return out, balance, score.logsumexp(1).square().mean()


def make(grid: tuple[int, ...] = (3, 4), k: int = 2, **options: Any) -> MoE:
    torch.manual_seed(0)
    return MoE(GridRouter(HIDDEN, grid, k, **options), INNER)


@pytest.mark.parametrize("grid", [(6,), (3, 4), (2, 2, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_a_dense_mixture_with_its_losses_and_gradients(grid: tuple[int, ...], masked: bool) -> None:
    moe = make(grid, 3)
    x = torch.randn(50, HIDDEN, requires_grad=True)
    mask = torch.arange(math.prod(grid)) % 3 != 1 if masked else None
    alive = ops.alive_bitmap(mask, math.prod(grid)) if mask is not None else None
    out, losses = moe(x, alive, want_losses=True)
    want = dense(moe, x, mask)
    for got, expected in zip((out, losses.balance, losses.z), want, strict=True):
        torch.testing.assert_close(got, expected)
    factor = torch.randn_like(out)
    leaves = (x, *moe.parameters())
    grads = [
        torch.autograd.grad((o * factor).sum() + 0.3 * balance + 0.2 * z, leaves)
        for o, balance, z in ((out, losses.balance, losses.z), want)
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_same_training_as_dense_over_20_steps() -> None:
    first = make()
    second = copy.deepcopy(first)
    optimizers = [torch.optim.Adam(moe.parameters(), lr=1e-2) for moe in (first, second)]
    x, target = torch.randn(64, HIDDEN), torch.randn(64, HIDDEN)
    history: list[list[float]] = [[], []]
    for _ in range(20):
        out, losses = first(x, want_losses=True)
        sides = ((out, losses.balance, losses.z), dense(second, x))
        for optimizer, seen, (y, balance, z) in zip(optimizers, history, sides, strict=True):
            loss = (y - target).square().mean() + 0.01 * balance + 0.001 * z
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    assert history[0][-1] < 0.9 * history[0][0]
    assert history[0] == pytest.approx(history[1], rel=1e-3)


def test_any_leading_shape_and_none_at_all() -> None:
    moe = make()
    x = torch.randn(2, 5, HIDDEN)
    torch.testing.assert_close(moe(x).flatten(0, 1), moe(x.flatten(0, 1)))
    assert moe(x[0, 0]).shape == (HIDDEN,)
    empty, losses = moe(torch.zeros(0, HIDDEN), want_losses=True)
    assert empty.shape == (0, HIDDEN)
    assert torch.stack([losses.balance, losses.z]).isfinite().all()


def test_no_expert_alive_gives_zeros_and_no_gradients() -> None:
    moe = make()
    x = torch.randn(7, HIDDEN, requires_grad=True)
    out, losses = moe(x, ops.alive_bitmap([], 12), want_losses=True)
    (out.sum() + losses.balance + losses.z).backward()
    assert not out.any()
    for leaf in (x, *moe.parameters()):
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_capacity_drops_the_last_tokens_of_a_full_expert() -> None:
    moe = make((4,), 1, capacity_factor=0.5)
    with torch.no_grad():
        moe.router.proj.weight.zero_()  # ties: all to expert 0
    x = torch.randn(32, HIDDEN)
    route = moe.router(x)
    assert route.offset.tolist() == [0, 4, 4, 4, 4]  # ceil(0.5 * 32 * 1 / 4)
    assert moe(x).any(1).tolist() == [True] * 4 + [False] * 28


def test_autocast_computes_experts_in_half_precision_and_routes_in_full() -> None:
    moe = make((16,), 2)
    x = torch.randn(400, HIDDEN)
    want, route = moe(x), moe.router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, low = moe(x), moe.router(x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(low.index, route.index)
    assert torch.equal(low.score, route.score)
    assert 0 < (got.float() - want).norm() < 0.01 * want.norm()
    got.float().square().sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in moe.parameters())


def test_a_sigmoid_router_with_groups_is_its_definition() -> None:
    torch.manual_seed(0)
    router = Router(HIDDEN, 8, 2, score="sigmoid", groups=4, top_groups=2)
    moe = MoE(router, INNER)
    x = torch.randn(40, HIDDEN, requires_grad=True)
    score = router.proj(x).sigmoid()
    kept = score.view(40, 4, 2).sum(2).topk(2).indices  # groups of two: the sum of both
    allowed = nn.functional.one_hot(kept, 4).sum(1).bool().repeat_interleave(2, dim=1)
    best, index = score.masked_fill(~allowed, 0.0).topk(2, dim=1)
    gate, up = torch.einsum("th,ehf->tef", x, moe.experts.w_in).chunk(2, dim=2)
    y = torch.einsum("tef,efh->teh", nn.functional.silu(gate) * up, moe.experts.w_out)
    weight = best / best.sum(1, keepdim=True)
    want = (weight[:, :, None] * y.gather(1, index[:, :, None].expand(-1, -1, HIDDEN))).sum(1)
    got = moe(x)
    torch.testing.assert_close(got, want)
    leaves = (x, *moe.parameters())
    factor = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, factor), torch.autograd.grad(want, leaves, factor), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_bias_balances_a_skewed_router_without_a_loss() -> None:
    torch.manual_seed(0)
    moe = MoE(Router(HIDDEN, 8, 2, score="sigmoid", balance_bias=True), INNER)
    router = moe.router
    x = torch.randn(512, HIDDEN) + 1.0
    weights = router.proj.weight.detach().clone()
    loads = []
    for _ in range(300):
        _, losses = moe(x, want_losses=True)
        loads.append(losses.assigned.max().item() / losses.assigned.mean().item())
        router.update_bias(losses.assigned, rate=5e-3)
    assert loads[0] > 1.5
    assert loads[-1] < 1.1
    before = router.bias.clone()
    router.update_bias(torch.tensor([9.0, 1, 0, 0, 0, 0, 0, 0]), rate=1.0, alive=ops.alive_bitmap([0, 1], 8))
    assert (router.bias - before).tolist() == [-1, 1, 0, 0, 0, 0, 0, 0]
    assert torch.equal(router.proj.weight, weights)
    assert "router.bias" in moe.state_dict()


def test_logits_of_half_precision_weights_are_computed_in_full() -> None:
    router = Router(HIDDEN, 16, 2).bfloat16()
    x = torch.randn(400, HIDDEN, dtype=torch.bfloat16)
    want = (x.float() @ router.proj.weight.float().t()).topk(2)
    got = router(x)
    assert torch.equal(got.index.long(), want.indices)
    torch.testing.assert_close(got.score, want.values)


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_compiles_without_graph_breaks(capacity_factor: float | None) -> None:
    moe = make(capacity_factor=capacity_factor)

    def step(x: Tensor) -> Tensor:
        out, losses = moe(x, want_losses=True)
        return out.square().mean() + losses.balance + losses.z

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (9, 16):
        x = torch.randn(tokens, HIDDEN)
        grads = [torch.autograd.grad(f(x), tuple(moe.parameters())) for f in (step, compiled)]
        for want, got in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)


def test_one_axis_is_a_router() -> None:
    router = Router(HIDDEN, 6, 2)
    assert router.num_experts == 6
    x = torch.randn(5, HIDDEN)
    assert torch.equal(router(x).index.long(), router.proj(x).topk(2).indices)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GridRouter(0, (2,), 1), "hidden: expected 1 or more, got 0"),
        (lambda: GridRouter(4, (), 1), "grid: expected 1 to 8 positive sizes"),
        (lambda: GridRouter(4, (300, 300), 1), "grid: .* at most 65536"),
        (lambda: GridRouter(4, (1,) * 9, 1), "grid: expected 1 to 8"),
        (lambda: Router(4, 2, 33), "k: expected 1 to 32, got 33"),
        (lambda: Router(4, 2, 1, capacity_factor=0.0), "capacity_factor: expected a positive number or None, got 0.0"),
        (lambda: Router(4, 2, 1, score="tanh"), "score: expected one of softmax, sigmoid, got 'tanh'"),
        (lambda: Router(4, 6, 1, groups=4), "groups: expected 1 to 32, a divisor of 6, got 4"),
        (lambda: Router(4, 6, 1, groups=3, top_groups=4), "top_groups: expected 1 to 3, got 4"),
        (lambda: Router(4, 6, 1).update_bias(torch.ones(6)), "balance_bias: this router was made without"),
        (lambda: Experts(2, 4, 0), "inner: expected 1 or more, got 0"),
        (lambda: make()(torch.ones(3, 5)), r"x: expected \[..., 12\], got \[3, 5\]"),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call()
