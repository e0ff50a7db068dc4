"""A CUDA graph of a routed layer, forward and backward: each replay computes what launching computes, also when experts
come and go between replays. Only machines with a GPU have anything to test here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops_cases import DEVICES, assert_near, assert_same
from torch import Tensor

from learning_at_home import ops
from learning_at_home.nn import MoE, Router

CUDA = [device for device in DEVICES if torch.device(device).type == "cuda"]
TOKENS, HIDDEN, GRID, EXPERTS, K = 300, 64, (5, 7), 35, 3


def masks(device: str) -> list[Tensor]:
    """All experts alive, some, fewer than a token wants, none."""
    ids = torch.arange(EXPERTS, device=device)
    return [ops.alive_bitmap(mask, EXPERTS) for mask in (ids >= 0, ids % 3 > 0, ids < 2, ids < 0)]


def routed(logits: Tensor, x: Tensor, alive: Tensor) -> list[Tensor]:
    """Every op but the matrix products: ids, the mixture, and gradients by logits and x."""
    route = ops.route_grid(logits, GRID, K, alive=alive, want_stats=True)
    plan = (route.index, route.rank, route.offset)
    rows, _ = ops.dispatch(x, *plan)
    out, weight = ops.combine(ops.swiglu(rows), route.score, *plan)
    loss = out.float().square().sum() + route.lse.sum() + route.stats[1].square().sum()
    return [*plan, weight, out, *torch.autograd.grad(loss, (logits, x))]


def captured(work: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """(a graph of it, the tensors that each replay fills)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate in their first calls
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return graph, work()


def inputs(device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, x = (torch.randn(TOKENS, n, generator=generator) for n in (sum(GRID), 2 * HIDDEN))
    return [logits.to(device), x.to(device, dtype)]


@pytest.mark.parametrize("device", CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_replay_equals_launching_whoever_is_alive(device: str, dtype: torch.dtype) -> None:
    alive = masks(device)[0].clone()
    leaves = [tensor.requires_grad_() for tensor in inputs(device, dtype, 0)]
    graph, found = captured(lambda: routed(*leaves, alive))
    for seed, mask in enumerate(masks(device), start=1):
        with torch.no_grad():
            for leaf, value in zip(leaves, inputs(device, dtype, seed), strict=True):
                leaf.copy_(value)
        alive.copy_(mask)
        graph.replay()
        for got, want in zip(found, routed(*leaves, mask), strict=True):
            assert_same(got.detach(), want.detach())


@pytest.mark.parametrize("device", CUDA)
def test_a_whole_layer_replays_where_its_products_need_no_host(device: str) -> None:
    if torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip("torch's grouped product reads the offsets on the host before compute capability 9")
    torch.manual_seed(0)
    moe = MoE(Router(HIDDEN, EXPERTS, K), HIDDEN).to(device, torch.bfloat16)
    x = torch.randn(TOKENS, HIDDEN, device=device).bfloat16().requires_grad_()

    def step() -> list[Tensor]:
        out = moe(x)
        return [out, *torch.autograd.grad(out.float().square().sum(), (x, *moe.parameters()))]

    graph, found = captured(step)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, want in zip(found, step(), strict=True):
            assert_near(got.detach(), want.detach(), 4e-3)
