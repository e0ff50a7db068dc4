"""Loss scaling of mixed precision: servers learn as without it, and nothing from steps that overflow."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from local_swarm import HIDDEN, Swarm, assert_close, grid_uids, swarm
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home import errors

GRID = (2, 2)


def make_model(running: Swarm, **kwargs: object) -> nn.Sequential:
    torch.manual_seed(1)
    first, last = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 3)
    return nn.Sequential(first, running.gate(GRID, 2, k_min=2, backward_k_min=2, balance_weight=0.1, **kwargs), last)


def train(running: Swarm, scaler: torch.amp.GradScaler | None) -> tuple[list[Tensor], list[Tensor]]:
    """Three steps; the trainer's weights and the servers'."""
    model = make_model(running, grad_scale=scaler.get_scale if scaler is not None else None)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        loss = (model(torch.randn(8, HIDDEN, generator=generator)) ** 2).sum()
        opt.zero_grad()
        if scaler is None:
            loss.backward()
            opt.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
    served = [p for backend in running.backends.values() for p in backend.expert.parameters()]
    return list(model.parameters()), [p.detach().clone() for p in served]


def test_scaled_and_unscaled_training_end_at_the_same_weights() -> None:
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1)):
        with swarm(grid_uids(GRID)) as running:
            results.append(train(running, scaler))
    assert scaler is not None
    assert scaler.get_scale() == 2.0**15  # it changed between the steps
    for plain, scaled in zip(*results, strict=True):
        for p, p_scaled in zip(plain, scaled, strict=True):
            assert_close(p_scaled, p, 1e-6)


def test_without_grad_scale_servers_learn_from_what_comes() -> None:
    with swarm(["expert.0"]) as running:
        before = copy.deepcopy(list(running.backends["expert.0"].expert.parameters()))
        x = torch.randn(2, HIDDEN)
        (64 * running.expert("expert.0")(x)).sum().backward()
        local = running.local["expert.0"]
        (64 * local(x)).sum().backward()
        after = running.backends["expert.0"].expert.parameters()
        for p, p_before, p_local in zip(after, before, local.parameters(), strict=True):
            assert_close(p, p_before - 0.1 * p_local.grad, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_remote_expert_divides_what_it_sends_and_multiplies_what_it_gets(dtype: torch.dtype) -> None:
    schema = (lib.BatchTensorProto(HIDDEN, dtype=dtype),)
    with swarm(["expert.0"], make_expert=lambda: nn.Linear(HIDDEN, HIDDEN).to(dtype), args_schema=schema) as running:
        local = running.local["expert.0"]
        x = torch.randn(3, HIDDEN, dtype=dtype, requires_grad=True)
        x_local = x.detach().clone().requires_grad_()
        grad = torch.randn(3, HIDDEN, dtype=dtype)
        running.expert("expert.0", grad_scale=16.0)(x).backward(16 * grad)
        local(x_local).backward(grad)
        assert x.grad is not None
        assert_close(x.grad, 16 * x_local.grad, 1e-6)
        after = running.backends["expert.0"].expert.parameters()
        for p, p_local in zip(after, local.parameters(), strict=True):
            assert_close(p, p_local - 0.1 * p_local.grad, 1e-3 if dtype is torch.float16 else 1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_step_that_overflows_reaches_no_server_and_is_skipped(bad: float) -> None:
    with swarm(grid_uids(GRID)) as running:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        model = make_model(running, grad_scale=scaler.get_scale)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        before = copy.deepcopy(model.state_dict())
        x = torch.randn(8, HIDDEN)
        for factor in (bad, 1.0):
            opt.zero_grad()
            scaler.scale((model(x) * factor).sum()).backward()
            stats = model[1].last_stats
            scaler.step(opt)
            scaler.update()
            if factor == 1.0:
                continue
            assert stats.backward_calls == 0
            assert stats.backward_skipped == stats.forward_calls > 0
            assert f"{stats.backward_skipped} skipped as not finite" in str(stats)
            assert model[0].weight.grad.isnan().all()
            assert scaler.get_scale() == 2.0**11
            assert all(backend.updates == 0 for backend in running.backends.values())
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert stats.backward_calls == stats.forward_calls  # the next step is whole again
        assert stats.backward_skipped == 0
        assert sum(backend.updates for backend in running.backends.values()) == stats.backward_calls

        expert = running.expert("expert.0.0", grad_scale=scaler.get_scale)
        updates = running.backends["expert.0.0"].updates
        x.requires_grad_()
        (expert(x) * bad).sum().backward()
        assert x.grad is not None
        assert x.grad.isnan().all()
        assert running.backends["expert.0.0"].updates == updates


def test_copies_share_the_scaler_and_wrong_scales_are_named() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    expert = copy.deepcopy(lib.RemoteExpert("expert.0", grad_scale=scaler.get_scale))
    scaler.scale(torch.ones(1))
    scaler.update(4.0)
    assert callable(expert.grad_scale)
    assert expert.grad_scale() == 4.0
    for wrong in (0.0, -1.0, math.inf, math.nan, "2"):
        with pytest.raises(errors.InvalidArgument, match="grad_scale: expected a positive number"):
            lib.RemoteExpert("expert.0", grad_scale=wrong)
        with pytest.raises(errors.InvalidArgument, match="grad_scale: expected a positive number"):
            lib.GatingFunction(in_features=4, grid_size=[2], network=None, k_best=1, grad_scale=wrong)
    with swarm(["expert.0"]) as running:
        out = running.expert("expert.0", grad_scale=lambda: 0.0)(torch.ones(1, HIDDEN))
        with pytest.raises(errors.InvalidArgument, match=r"grad_scale: .*got 0\.0"):
            out.sum().backward()
        assert running.backends["expert.0"].updates == 0
