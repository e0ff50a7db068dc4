"""What a gate tells about its steps; anomalies; gates used by several threads, copied, and loaded again."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable

import pytest
import torch
from conftest import InBackground
from local_swarm import HIDDEN, Block, assert_close, grid_uids, swarm
from torch import Tensor, nn

from learning_at_home import errors


class Odd(Block):
    """Gives infinity for rows whose first value is 1, and infinite gradients for those whose first value is 2."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        out = torch.where(x[:, :1] == 1, torch.inf, out)
        return _InfiniteGradient.apply(out, x[:, :1] == 2)


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out, bad):
        ctx.save_for_backward(bad)
        return out.clone()

    @staticmethod
    def backward(ctx, grad):
        (bad,) = ctx.saved_tensors
        return torch.where(bad, torch.inf, grad), None


def first_is(other: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Makes one such expert, then Blocks."""
    made = itertools.count()
    return lambda: Block() if next(made) else other()


def tokens(first: float) -> Tensor:
    x = torch.randn(6, HIDDEN)
    x[:, 0] = first
    return x.requires_grad_()


def test_every_call_of_a_step_is_told() -> None:
    with swarm(grid_uids((3,)), make_expert=first_is(Odd)) as running:
        gate = running.gate((3,), 2, k_min=2, backward_k_min=2, detect_anomalies=True)
        rows = 7
        gate(torch.randn(rows, HIDDEN)).sum().backward()
        stats = gate.last_stats
        assert sum(stats.chosen.values()) == 2 * rows
        assert stats.answered == stats.chosen
        assert set(stats.backward) == set(stats.forward)
        for uid, call in [*stats.forward.items(), *stats.backward.items()]:
            assert call.uid == uid
            assert call.server == f"server 127.0.0.1:{running.server.port}"
            assert call.error is None
            assert call.batch_rows == call.rows
            assert call.service_time > 0
            assert call.queue_time >= 0
            assert call.elapsed >= call.queue_time + call.service_time
            assert 0 <= call.wait_time < 60
        assert stats.wire_bytes == 5 * 2 * rows * HIDDEN * 4  # x and y; x, dy and dx; two experts a row
        assert (stats.hedged, stats.retried, stats.backward_skipped) == (0, 0, 0)
        n = len(stats.chosen)
        assert str(stats) == (
            f"3 experts alive, {n} chosen; forward: {n} of {n} answered; backward: {n} of {n} answered"
        )
        table = stats.summary().splitlines()
        assert table[0] == str(stats)
        busiest = max(stats.chosen, key=lambda uid: stats.chosen[uid])
        assert busiest in table[1]
        assert f"in a batch of {stats.chosen[busiest]}" in table[1]
        assert len(table) == 1 + n

        gate.proj.weight.data.zero_()
        gate.proj.bias.data.copy_(torch.tensor([2.0, 1.0, 0.0]))  # everybody to expert.0 and expert.1
        gate(tokens(1.0))
        stats = gate.last_stats
        assert stats.chosen == {"expert.0": 6, "expert.1": 6}
        assert stats.answered == {"expert.1": 6}
        assert isinstance(stats.forward["expert.0"].error, errors.NotFinite)
        assert "forward NotFinite" in stats.summary()


def test_anomalies_count_as_failures_if_asked_for() -> None:
    with swarm(["expert.0", "expert.1"], make_expert=first_is(Odd)) as running:
        gate = running.gate((2,), 2, k_min=2, backward_k_min=2, detect_anomalies=True)
        other = running.local["expert.1"]
        x = tokens(1.0)
        assert_close(gate(x), other(x), 1e-6)  # the softmax over the one that answered is 1
        (error,) = gate.last_stats.errors
        assert isinstance(error, errors.NotFinite)
        where = rf"forward of expert 'expert.0' on server 127.0.0.1:{running.server.port}"
        with pytest.raises(errors.NotFinite, match=where):
            raise error

        x = tokens(2.0)
        gate(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        stats = gate.last_stats
        assert (stats.forward_failed, stats.backward_failed) == (0, 1)
        assert stats.backward["expert.1"].error is None
        assert "backward of expert 'expert.0'" in str(stats.errors[0])

        unguarded = running.gate((2,), 2, k_min=2)
        assert unguarded(tokens(1.0)).isinf().any()
        assert unguarded.last_stats.failed == 0


def test_threads_share_a_gate() -> None:
    with swarm(grid_uids((4, 4))) as running:
        gate, fresh = running.gate((4, 4), 2, k_min=2), running.gate((4, 4), 2, k_min=2)
        fresh.load_state_dict(gate.state_dict())
        fresh._alive = fresh._schema = None  # as before its first step, which both threads begin at once
        inputs = [torch.randn(5 + i, HIDDEN) for i in range(8)]
        with torch.no_grad():
            wanted = [gate(x) for x in inputs]
        start = threading.Barrier(len(inputs))

        def forward(x: Tensor) -> list[Tensor]:
            start.wait(60)
            with torch.no_grad():
                return [fresh(x) for _ in range(4)]

        threads = [InBackground(lambda x=x: forward(x)) for x in inputs]
        for thread, want in zip(threads, wanted, strict=True):
            for out in thread.result():
                assert_close(out, want, 1e-6)


def test_backward_passes_of_threads_all_arrive() -> None:
    with swarm(grid_uids((2,)), make_expert=lambda: nn.Linear(HIDDEN, HIDDEN), max_batch_size=4096) as running:
        gate = running.gate((2,), 2, k_min=2, backward_k_min=2)

        def step(seed: int) -> tuple[Tensor, int]:
            x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(seed), requires_grad=True)
            gate(x).sum().backward()
            return x.grad, seed

        threads = [InBackground(lambda i=i: step(i)) for i in range(6)]
        assert all(thread.result()[0].abs().sum() > 0 for thread in threads)
        counters = running.server.counters()
        assert counters["requests"] == 24  # two experts, two directions, six threads
        assert counters["failed"] == 0


def test_a_model_with_a_gate_saves_loads_and_copies() -> None:
    with swarm(grid_uids((4, 4))) as running:
        model = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), running.gate((4, 4), 2, k_min=2))
        assert set(model.state_dict()) == {"0.weight", "0.bias", "1.proj.weight", "1.proj.bias"}
        x = torch.randn(5, HIDDEN)
        want = model(x)
        twin = copy.deepcopy(model)
        assert twin[1].network is model[1].network
        assert twin[1].alive is not model[1].alive
        assert torch.equal(twin(x), want)
        for p in twin.parameters():
            p.data.add_(1.0)
        assert torch.equal(model(x), want)
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(x), want)
        twin(x).sum().backward()
        assert twin[1].proj.weight.grad is not None
        assert model[1].proj.weight.grad is None
