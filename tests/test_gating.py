"""The gate against a dense product-key mixture of the same experts, in one process."""

import copy
import itertools
import math

import pytest
import torch
from local_swarm import HIDDEN, Block, assert_close, grid_uids, swarm
from torch import nn

import learning_at_home as lib
from learning_at_home import errors


def dense_mixture(gate, experts, x, k):
    """Every alive expert on every token, softmax over the k best: the mathematics, without any routing."""
    grid = gate.grid_size
    scores = gate.proj(x).split(list(grid), dim=-1)
    uids = [uid for uid in grid_uids(grid) if uid in experts]
    columns = []
    for uid in uids:
        coordinates = [int(c) for c in uid.split(".")[1:]]
        columns.append(sum(s[:, c] for s, c in zip(scores, coordinates, strict=True)))
    logits = torch.stack(columns, dim=-1)
    best, index = logits.topk(min(k, len(uids)), dim=-1)
    weights = torch.zeros_like(logits).scatter(-1, index, torch.softmax(best, dim=-1))
    outputs = torch.stack([experts[uid](x) for uid in uids], dim=1)
    return (weights[..., None] * outputs).sum(1)


CASES = [
    pytest.param((5,), None, 3, id="1-D"),
    pytest.param((4, 4), None, 4, id="2-D"),
    pytest.param((2, 3, 2), None, 4, id="3-D"),
    pytest.param((2, 2, 2, 2), None, 2, id="4-D"),
    pytest.param((5, 2), ["expert.0.1", "expert.4.0", "expert.2.1", "expert.2.0", "expert.3.1"], 3, id="ragged"),
    pytest.param((4, 4), ["expert.2.3"], 4, id="1 alive"),
    pytest.param((4, 4), ["expert.2.3", "expert.2.1"], 4, id="2 alive"),
    pytest.param((4, 4), ["expert.2.3", "expert.0.1", "expert.3.1"], 4, id="3 alive"),
]


@pytest.mark.parametrize(("grid", "alive", "k"), CASES)
def test_gate_equals_a_dense_mixture(grid, alive, k):
    with swarm(alive or grid_uids(grid)) as running:
        gate = running.gate(grid, k)
        experts, reference = running.local, copy.deepcopy(gate.proj)
        x = torch.randn(23, HIDDEN, requires_grad=True)
        x_ref = x.detach().clone().requires_grad_()
        grad = torch.randn(23, HIDDEN)
        out = gate(x)
        out.backward(grad)
        got_grads = [p.grad.clone() for p in gate.proj.parameters()]
        gate.proj.load_state_dict(reference.state_dict())
        gate.proj.zero_grad()
        want = dense_mixture(gate, experts, x_ref, k)
        want.backward(grad)
        assert_close(out, want, 1e-5)
        assert_close(x.grad, x_ref.grad, 1e-5)
        for got, p in zip(got_grads, gate.proj.parameters(), strict=True):
            assert_close(got, p.grad, 1e-5)
        for uid, backend in running.backends.items():  # one optimizer step of each expert that served
            want_step = all(p.grad is not None and p.grad.abs().sum() > 0 for p in experts[uid].parameters())
            assert backend.updates == int(want_step)
            for p, p_ref in zip(backend.expert.parameters(), experts[uid].parameters(), strict=True):
                assert_close(p, p_ref - 0.1 * p_ref.grad, 1e-5)


@pytest.fixture(scope="module")
def grid44():
    with swarm(grid_uids((4, 4))) as running:
        yield running


def test_every_leading_shape_is_routed_per_token(grid44):
    gate = grid44.gate((4, 4), 2)
    x = torch.randn(2, 3, 5, HIDDEN)
    out = gate(x)
    assert out.shape == x.shape
    flat = gate(x.view(-1, HIDDEN))
    assert torch.equal(out.view(-1, HIDDEN), flat)
    assert gate(x[0, 0, 0]).shape == (HIDDEN,)
    assert_close(gate(x[0, 0, 0]), out[0, 0, 0], 1e-5)
    assert gate(torch.randn(0, HIDDEN)).shape == (0, HIDDEN)


def test_one_call_per_expert_and_direction(grid44):
    gate = grid44.gate((4, 4), 4)
    before = grid44.server.counters()["requests"]
    gate(torch.randn(512, HIDDEN)).sum().backward()
    stats = gate.last_stats
    assert grid44.server.counters()["requests"] - before == stats.forward_calls + stats.backward_calls
    assert stats.forward_calls <= 16
    assert stats.backward_calls == stats.forward_calls
    assert stats.failed == 0
    assert stats.experts_alive == 16


def test_more_choices_than_experts():
    with swarm(["expert.1"]) as running:
        gate = running.gate((3,), 3)
        x = torch.randn(4, HIDDEN)
        assert_close(gate(x), running.local["expert.1"](x), 1e-6)


def test_extra_arguments_follow_their_tokens():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x, ids, *, scale):
            return {"out": x * scale * self.w, "ids": ids.float()[:, None] + 0 * x}

    schema = {
        "args_schema": (lib.BatchTensorProto(HIDDEN), lib.BatchTensorProto(dtype=torch.int64)),
        "kwargs_schema": {"scale": lib.BatchTensorProto(1)},
    }
    with swarm(grid_uids((2, 2)), make_expert=Shift, **schema) as running:
        gate = running.gate((2, 2), 2)
        x = torch.randn(3, 4, HIDDEN, requires_grad=True)
        ids, scale = torch.arange(12).view(3, 4), torch.rand(3, 4, 1, requires_grad=True)
        out = gate(x, ids, scale=scale)
        assert_close(out["out"], x * scale, 1e-6)
        assert_close(out["ids"], ids[..., None].expand(3, 4, HIDDEN).float(), 1e-6)
        out["out"].sum().backward()
        assert_close(x.grad, scale.expand_as(x), 1e-6)
        assert_close(scale.grad, x.detach().sum(-1, keepdim=True), 1e-5)
        with pytest.raises(errors.InvalidArgument, match="leading sizes"):
            gate(x, ids[:2], scale=scale)
        with pytest.raises(errors.SchemaMismatch, match="keywords"):
            gate(x, ids)


def test_nobody_alive_gives_zeros_and_zero_gradients_or_the_typed_error():
    with lib.TesseractNetwork(port=0, host="127.0.0.1") as network:
        gate = lib.GatingFunction(
            in_features=HIDDEN, grid_size=[4, 4], network=network, k_best=2, uid_prefix="expert", forward_timeout=1
        )
        x = torch.randn(3, 5, HIDDEN, requires_grad=True)
        out = gate(x)
        assert torch.equal(out, torch.zeros(3, 5, HIDDEN))
        assert gate.last_stats.empty_tokens == 15
        out.sum().backward()
        for p in gate.parameters():
            assert torch.equal(p.grad, torch.zeros_like(p))
        assert torch.equal(x.grad, torch.zeros_like(x))
        gate.on_empty = "raise"
        with pytest.raises(errors.NoExpertsAlive, match="15 of 15 tokens"):
            gate(x)


def test_a_failing_expert_leaves_the_others_their_softmax():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            if self.training:
                raise ValueError("out of order")
            return x * self.w

    made = itertools.count()
    with swarm(["expert.0", "expert.1"], make_expert=lambda: Block() if next(made) else Broken()) as running:
        gate = running.gate((2,), 2)
        x = torch.randn(6, HIDDEN, requires_grad=True)
        out = gate(x)
        assert_close(out, running.local["expert.1"](x), 1e-6)  # the softmax over the one that answered is 1
        out.sum().backward()
        assert torch.isfinite(x.grad).all()
        assert gate.last_stats.forward_failed == 1
        assert isinstance(gate.last_stats.errors[0], errors.ExpertError)
        assert "out of order" in gate.last_stats.errors[0].traceback_text


def test_a_failing_backward_gives_zero_gradients_and_is_counted():
    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("no gradient today")

    class Broken(Block):
        def forward(self, x):
            return NoBackward.apply(super().forward(x))

    with swarm(["expert.0"], make_expert=Broken) as running:
        gate = running.gate((1,), 1)
        x = torch.randn(6, HIDDEN, requires_grad=True)
        gate(x).sum().backward()
        assert torch.equal(x.grad, torch.zeros_like(x))
        assert gate.last_stats.backward_failed == 1
        assert running.backends["expert.0"].updates == 0


def test_balance_loss_has_a_gradient_and_leaves_values_alone(grid44):
    gate = grid44.gate((4, 4), 2, balance_weight=0.5)
    plain = grid44.gate((4, 4), 2)
    plain.load_state_dict(gate.state_dict())
    x = torch.randn(64, HIDDEN)
    out, want = gate(x), plain(x)
    assert torch.equal(out, want)
    assert gate.last_stats.balance_loss >= 0.9
    (out * 0).sum().backward()  # what is left is the balancing gradient alone
    assert gate.proj.weight.grad.abs().sum() > 0
    step = gate.proj.weight.detach() - 0.5 * gate.proj.weight.grad
    before = gate.last_stats.balance_loss
    gate.proj.weight.data.copy_(step)
    gate(x)
    assert gate.last_stats.balance_loss < before


def test_beam_search_returns_the_best_experts_alive(grid44):
    gate = grid44.gate((4, 4), 3)
    scores = torch.randn(6, 4), torch.randn(6, 4)
    chosen = gate.beam_search(scores, 3)
    total = (scores[0][:, :, None] + scores[1][:, None, :]).view(6, 16)
    for experts, flat in zip(chosen, total.topk(3).indices.tolist(), strict=True):
        assert [expert.uid for expert in experts] == [f"expert.{e // 4}.{e % 4}" for e in flat]
    assert chosen[0][0](torch.ones(1, HIDDEN)).shape == (1, HIDDEN)
    with swarm(["expert.3.3"]) as running:
        (only,) = running.gate((4, 4), 3).beam_search((torch.zeros(1, 4), torch.zeros(1, 4)))
        assert [expert.uid for expert in only] == ["expert.3.3"]


def test_half_precision_inputs_are_routed_in_full_precision(grid44):
    gate = grid44.gate((4, 4), 2)
    x = torch.randn(8, HIDDEN)
    want = gate(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gate(x)
    assert torch.equal(out, want)


def test_compiled_models_break_the_graph_and_work(grid44):
    gate = grid44.gate((4, 4), 2)
    model = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), gate, nn.Linear(HIDDEN, 3))
    x = torch.randn(8, HIDDEN)
    compiled = torch.compile(model, backend="eager")
    assert_close(compiled(x), model(x), 1e-6)
    compiled(x).sum().backward()
    assert gate.proj.weight.grad is not None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"grid_size": []}, "grid_size"),
        ({"grid_size": [70_000, 2]}, "65536"),
        ({"k_best": 0}, "k_best"),
        ({"k_min": 3}, "k_min"),
        ({"backward_k_min": 0}, "backward_k_min"),
        ({"on_empty": "nan"}, "on_empty"),
        ({"priority": 256}, "priority"),
        ({"forward_timeout": math.inf}, "forward_timeout"),
        ({"timeout_after_k_min": -1}, "timeout_after_k_min"),
    ],
)
def test_arguments_are_checked(change, text):
    good = {"in_features": 4, "grid_size": [2, 2], "network": None, "k_best": 2}
    with pytest.raises(errors.InvalidArgument, match=text):
        lib.GatingFunction(**{**good, **change})


def test_inputs_are_checked(grid44):
    with pytest.raises(errors.InvalidArgument, match=rf"expected \[..., {HIDDEN}\], got \[3, 5\]"):
        grid44.gate((4, 4), 2)(torch.randn(3, 5))
