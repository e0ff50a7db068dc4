"""Gates of grids too large for an alive map: choice by beam search, against the mathematics and the map."""

import asyncio
import copy
import time

import pytest
import torch
from local_swarm import HIDDEN, Block, assert_close, grid_uids, sgd_backend, swarm

import learning_at_home as lib
from learning_at_home import errors
from learning_at_home.client.beam_experts import BeamExperts
from learning_at_home.client.transport import get_transport

HUGE = (400, 300)
SPREAD = [f"expert.{31 * i % 400}.{17 * i % 300}" for i in range(12)]


def dense_scores(scores, uids):
    """[B, len(uids)]: what each expert of HUGE scores."""
    first, second = scores.split(list(HUGE), dim=-1)
    at = torch.tensor([[int(c) for c in uid.split(".")[1:]] for uid in uids])
    return first[:, at[:, 0]] + second[:, at[:, 1]]


@pytest.fixture(scope="module")
def spread():
    with swarm(SPREAD, serve={"grid_size": HUGE}) as running:
        yield running


def test_a_gate_of_a_huge_grid_equals_a_dense_mixture_and_trains():
    with swarm(SPREAD, serve={"grid_size": HUGE}) as running:
        gate, k = running.gate(HUGE, 3), 3
        assert isinstance(gate.alive, BeamExperts)
        proj = copy.deepcopy(gate.proj)
        x = torch.randn(23, HIDDEN, requires_grad=True)
        x_ref, grad = x.detach().clone().requires_grad_(), torch.randn(23, HIDDEN)
        out = gate(x)
        out.backward(grad)
        logits = dense_scores(proj(x_ref), SPREAD)
        best, index = logits.topk(k, dim=-1)
        weights = torch.zeros_like(logits).scatter(-1, index, best.softmax(-1))
        want = (weights[..., None] * torch.stack([running.local[uid](x_ref) for uid in SPREAD], dim=1)).sum(1)
        want.backward(grad)
        assert_close(out, want, 1e-5)
        assert_close(x.grad, x_ref.grad, 1e-5)
        for got, p in zip(gate.proj.parameters(), proj.parameters(), strict=True):
            assert_close(got.grad, p.grad, 1e-5)
        assert gate.last_stats.experts_alive == len(SPREAD)
        for uid, backend in running.backends.items():
            for p, p_ref in zip(backend.expert.parameters(), running.local[uid].parameters(), strict=True):
                assert_close(p, p_ref if p_ref.grad is None else p_ref - 0.1 * p_ref.grad, 1e-5)
        packets = running.network.status()["packets_out"]
        gate(x)  # by then all has been read
        assert running.network.status()["packets_out"] - packets <= 200  # what a node sends of its own accord


def test_both_modes_agree_on_a_small_grid():
    with swarm(grid_uids((4, 4)), serve={"grid_size": HUGE}) as running:
        by_map = running.gate((4, 4), 3, balance_weight=0.1)
        by_beam = running.gate((4, 4), 3, balance_weight=0.1)
        by_beam.load_state_dict(by_map.state_dict())
        by_beam._alive = BeamExperts(running.network, get_transport(running.network.identity), "expert", (4, 4))
        assert by_beam.wait_for_experts(16)
        for gate in (by_map, by_beam):
            gate.eval()  # experts stay as they are
        x = torch.randn(64, HIDDEN)  # enough to choose every expert, whom the balancing loss then knows in both modes
        assert torch.equal(by_map(x), by_beam(x))
        logits = by_map.proj(x)
        routes = [gate.alive.choose(logits, 3, want_stats=True) for gate in (by_map, by_beam)]
        uids = [[[c.experts[e].uid for e in row] for row in c.route.index.tolist()] for c in routes]
        assert uids[0] == uids[1]
        assert torch.equal(routes[0].route.score, routes[1].route.score)
        assert_close(routes[0].route.stats, routes[1].route.stats, 1e-5)
        grads = []
        for choice in routes:
            (grad,) = torch.autograd.grad(
                choice.route.score.square().sum() + choice.route.stats[1].square().sum(), logits, retain_graph=True
            )
            grads.append(grad)
        assert_close(grads[0], grads[1], 1e-5)


def test_a_dead_server_is_skipped(spread):
    dead = [f"expert.{i}.{i}" for i in range(1, 5)]
    backends = {uid: sgd_backend(uid, Block()) for uid in dead}
    network = lib.TesseractNetwork(("127.0.0.1", spread.server.network.port), port=0, host="127.0.0.1", start=True)
    with lib.TesseractServer(network, backends, port=0, grid_size=HUGE):
        gate = spread.gate(HUGE, 2)
        assert gate.wait_for_experts(len(SPREAD) + len(dead), timeout=60)
        with torch.no_grad():  # everybody wants the four
            gate.proj.weight.zero_()
            gate.proj.bias.zero_()
            gate.proj.bias[1:5] = gate.proj.bias[401:405] = 1.0
        x = torch.randn(8, HIDDEN)
        gate(x)
        assert set(gate.last_stats.answered) <= set(dead)
        assert gate.last_stats.answered
        network.shutdown()  # nothing is taken back
    deadline = time.monotonic() + 60
    while gate.last_stats.failed or set(gate.last_stats.chosen) & set(dead):
        assert time.monotonic() < deadline
        gate(x)
    assert gate.last_stats.empty_tokens == 0
    assert set(gate.last_stats.answered) <= set(SPREAD)


def test_find_best_experts_is_brute_force_over_the_alive(spread):
    scores = torch.randn(700, sum(HUGE))
    found = spread.network.find_best_experts("expert", HUGE, scores, 4)
    want = dense_scores(scores, SPREAD).topk(4).indices
    got = [[found.experts[e].uid for e in row] for row in found.index.tolist()]
    assert got == [[SPREAD[i] for i in row] for row in want.tolist()]
    assert (found.declared, found.unread, found.other_schemas) == (len(SPREAD), 0, 0)
    assert {expert.port for expert in found.experts} == {spread.server.port}
    flat = [expert.flat_id for expert in found.experts]
    assert flat == sorted(flat)
    future = spread.network.find_best_experts("expert", HUGE, scores, 4, return_future=True)
    assert torch.equal(future.result(30).index, found.index)
    awaited = asyncio.run(spread.network.afind_best_experts("expert", HUGE, scores[:3], 4))
    assert torch.equal(awaited.index, spread.network.find_best_experts("expert", HUGE, scores[:3], 4).index)
    nobody = spread.network.find_best_experts("other", HUGE, scores[:2], 3)
    assert nobody.index.tolist() == [[-1] * 3] * 2
    assert nobody.experts == []


def test_beam_search_of_a_gate_returns_experts(spread):
    gate = spread.gate(HUGE, 2)
    scores = torch.randn(5, sum(HUGE))
    chosen = gate.beam_search(scores.split(list(HUGE), dim=1), 3)
    want = dense_scores(scores, SPREAD).topk(3).indices.tolist()
    assert [[expert.uid for expert in row] for row in chosen] == [[SPREAD[i] for i in row] for row in want]
    assert chosen[0][0](torch.ones(1, HIDDEN)).shape == (1, HIDDEN)


def test_nobody_alive_gives_zeros_and_zero_gradients(spread):
    gate = lib.GatingFunction(
        in_features=HIDDEN, grid_size=HUGE, network=spread.network, k_best=2, uid_prefix="nobody", forward_timeout=1
    )
    x = torch.randn(3, HIDDEN, requires_grad=True)
    out = gate(x)
    assert torch.equal(out, torch.zeros(3, HIDDEN))
    out.sum().backward()
    for p in gate.parameters():
        assert torch.equal(p.grad, torch.zeros_like(p))


def test_arguments_are_checked(spread):
    find = spread.network.find_best_experts
    with pytest.raises(errors.InvalidArgument, match=r"scores: expected \[B, 700\], got \[2, 3\]"):
        find("expert", HUGE, torch.zeros(2, 3), 1)
    with pytest.raises(errors.InvalidArgument, match="k_best: expected 1 to 32, got 33"):
        find("expert", HUGE, torch.zeros(2, 700), 33)
    with pytest.raises(errors.InvalidArgument, match="beam_size"):
        find("expert", HUGE, torch.zeros(2, 700), 4, beam_size=3)
    with pytest.raises(errors.InvalidArgument, match="grid: expected 1 to 8 sizes"):
        find("expert", (70_000, 2), torch.zeros(2, 70_002), 1)
    with pytest.raises(errors.InvalidArgument, match="grid_size"):
        lib.TesseractServer(None, {}, grid_size=(0, 3))
    gate = spread.gate(HUGE, 2)
    with pytest.raises(errors.InvalidArgument, match="cannot be listed"):
        gate.export()
