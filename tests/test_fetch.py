"""Bringing experts home: one at a time, or a whole mixture as a local module and a file."""

from __future__ import annotations

import copy
import threading
import warnings
from pathlib import Path

import pytest
import torch
from conftest import InBackground
from local_swarm import HIDDEN, Block, assert_close, grid_uids, sgd_backend, swarm
from torch import nn

import learning_at_home as lib
from learning_at_home import errors
from learning_at_home.nn import FeedForwardExpert, LocalMixture

OPEN = {"allow_fetch": True}


def ffn() -> nn.Module:
    return FeedForwardExpert(HIDDEN)


def test_weights_come_as_they_are_between_two_updates() -> None:
    with swarm(["expert.1"], serve=OPEN) as running:
        expert, backend = running.expert("expert.1"), running.backends["expert.1"]
        state = expert.fetch_state()
        assert state.keys() == backend.expert.state_dict().keys()
        for name, value in backend.expert.state_dict().items():
            assert torch.equal(state[name], value)
        expert(torch.randn(3, HIDDEN)).sum().backward()
        fetched = running.network.fetch_expert("expert.1", Block)
        assert isinstance(fetched, Block)
        for p, want in zip(fetched.parameters(), backend.expert.parameters(), strict=True):
            assert torch.equal(p, want)
        assert not torch.equal(state["up.bias"], fetched.up.bias)
        mine = Block()
        assert running.network.fetch_expert("expert.1", mine) is mine
        x = torch.randn(5, HIDDEN)
        torch.testing.assert_close(mine(x), expert(x))
        assert sorted(running.network.fetch_expert("expert.1")) == sorted(state)


def test_fetching_while_others_train() -> None:
    with swarm(["expert.1"], serve=OPEN) as running:
        expert, stop = running.expert("expert.1"), threading.Event()

        def train() -> None:
            while not stop.is_set():
                expert(torch.randn(3, HIDDEN)).sum().backward()

        trainer = threading.Thread(target=train)
        trainer.start()
        try:
            seen = [expert.fetch_state()["up.weight"] for _ in range(5)]
        finally:
            stop.set()
            trainer.join()
        assert all(weight.shape == (2 * HIDDEN, HIDDEN) for weight in seen)


def test_more_callers_than_a_server_gives_to_at_a_time_all_get_theirs() -> None:
    with swarm(["expert.1"], lambda: nn.Linear(HIDDEN, 70_000), serve=OPEN) as running:
        expert = running.expert("expert.1")
        callers = [InBackground(expert.fetch_state) for _ in range(12)]
        for caller in callers:
            assert torch.equal(caller.result()["bias"], running.backends["expert.1"].expert.bias)
        assert running.server.counters()["failed"] == 0


def test_large_experts_come_in_many_chunks() -> None:
    with swarm(["expert.1"], lambda: nn.Linear(HIDDEN, 70_000), serve=OPEN) as running:
        state = running.expert("expert.1").fetch_state()  # 4.5 MiB
        assert torch.equal(state["weight"], running.backends["expert.1"].expert.weight)


def test_servers_give_nothing_away_unless_told_to() -> None:
    with swarm(["expert.1"]) as running:
        for fetch in (running.expert("expert.1").fetch_state, lambda: running.network.fetch_expert("expert.1")):
            with pytest.raises(errors.NotPermitted, match=r"'expert.1' on server .*allow_fetch"):
                fetch()
        gate = running.gate([2], 1)
        with pytest.raises(errors.NotPermitted, match="allow_fetch"):
            gate.export()
        with pytest.raises(errors.ExpertNotFound):
            running.expert("expert.0").fetch_state()
        with pytest.raises(errors.ExpertNotFound, match=r"expert\.0"):
            running.network.fetch_expert("expert.0", timeout=5)


def test_modules_that_do_not_fit_are_named() -> None:
    with swarm(["expert.1"], serve=OPEN) as running, pytest.raises(errors.SchemaMismatch) as caught:
        running.network.fetch_expert("expert.1", Block(HIDDEN + 1))
    for part in ("expert.1", "Block", "'up.weight'", "float32[34, 17]", "float32[32, 16]"):
        assert part in str(caught.value)


def test_states_that_no_file_can_hold_are_the_callers_error_and_harm_nobody() -> None:
    class Odd(Block):
        def get_extra_state(self) -> object:
            return "text"

        def set_extra_state(self, state: object) -> None:
            pass

    with swarm(["expert.1"], Odd, serve=OPEN) as running:
        expert = running.expert("expert.1")
        with pytest.raises(errors.ExpertError, match="_extra_state"):
            expert.fetch_state()
        assert expert(torch.randn(2, HIDDEN)).shape == (2, HIDDEN)


@pytest.mark.parametrize(("grid", "k"), [((4,), 2), ((3, 3), 4), ((2, 2, 2), 3)])
def test_an_exported_gate_computes_the_same(grid: tuple[int, ...], k: int, tmp_path: Path) -> None:
    path = tmp_path / "mixture.safetensors"
    uids = grid_uids(grid)[1:]  # one cell is empty
    with swarm(uids, ffn, serve=OPEN) as running:
        gate = running.gate(grid, k).eval()
        mixture = gate.export(path)
        for lead in ((17,), (2, 3), (), (0,)):
            x = torch.randn(*lead, HIDDEN)
            want = gate(x)
            assert want.shape == x.shape
            for got in (mixture(x), LocalMixture.load(path).eval()(x)):
                assert got.shape == want.shape
                if x.numel():
                    assert_close(got, want, 1e-5)
    assert not mixture.training
    assert sorted(mixture.experts, key=int) == [str(i) for i in range(1, len(uids) + 1)]
    x = torch.randn(9, HIDDEN, requires_grad=True)  # it trains without anybody
    mixture.train()(x).square().sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert float(mixture.proj.weight.grad.abs().sum()) > 0


class TwoOutputs(nn.Module):
    """Takes a keyword argument and returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor, *, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": self.linear(x).sum(-1), "rows": self.linear(x) + bias}


def test_exported_experts_of_any_kind_and_signature(tmp_path: Path) -> None:
    schema = {"kwargs_schema": {"bias": lib.BatchTensorProto(1)}}
    path = tmp_path / "mixture.safetensors"
    with swarm(grid_uids((3,)), TwoOutputs, sgd_backend, serve=OPEN, **schema) as running:
        gate = running.gate((3,), 2).eval()
        with pytest.raises(errors.InvalidArgument, match="make_expert: needed, since expert 'expert"):
            gate.export()
        made = []

        def make(uid: str) -> nn.Module:
            made.append(uid)
            return TwoOutputs()

        gate.export(path, make_expert=make)
        assert sorted(made) == grid_uids((3,))
        mixture = LocalMixture.load(path, make_expert=make)
        x, bias = torch.randn(6, HIDDEN), torch.randn(6, 1)
        want, got = gate(x, bias=bias), mixture(x, bias=bias)
        assert sorted(got) == ["rows", "sum"]
        for name, value in want.items():
            assert_close(got[name], value, 1e-5)


def test_experts_that_may_not_be_fetched_are_left_out_with_a_warning(network: lib.TesseractNetwork) -> None:
    backends = {uid: sgd_backend(uid, ffn()) for uid in grid_uids((2,))}
    peer = ("127.0.0.1", network.port)
    with (
        lib.TesseractNetwork(peer, port=0, host="127.0.0.1") as first,
        lib.TesseractNetwork(peer, port=0, host="127.0.0.1") as second,
        lib.TesseractServer(first, {"expert.0": backends["expert.0"]}, port=0, allow_fetch=True),
        lib.TesseractServer(second, {"expert.1": backends["expert.1"]}, port=0),
    ):
        gate = lib.GatingFunction(
            in_features=HIDDEN, grid_size=[2], network=network, k_best=2, uid_prefix="expert"
        ).eval()
        assert gate.wait_for_experts(2)
        with pytest.warns(UserWarning, match="1 of 2 experts are not in the export.*allow_fetch"):
            mixture = gate.export()
    assert list(mixture.experts) == ["0"]
    x = torch.randn(3, HIDDEN)
    torch.testing.assert_close(mixture(x), backends["expert.0"].expert.eval()(x))


def test_export_without_experts_and_files_of_another_kind(network: lib.TesseractNetwork, tmp_path: Path) -> None:
    gate = lib.GatingFunction(
        in_features=4, grid_size=[2], network=network, k_best=1, uid_prefix="nobody", forward_timeout=0.1
    )
    with pytest.raises(errors.NoExpertsAlive, match="nobody"):
        gate.export()
    (tmp_path / "other").write_bytes(b"something")
    with pytest.raises(ValueError, match="not a safetensors file"):
        LocalMixture.load(tmp_path / "other")


def test_copies_and_states_of_a_model_that_holds_a_network(tmp_path: Path) -> None:
    with swarm(grid_uids((3,)), ffn) as running:
        model = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), running.gate((3,), 2), nn.LayerNorm(HIDDEN)).eval()
        x = torch.randn(5, HIDDEN)
        want = model(x)
        torch.testing.assert_close(copy.deepcopy(model)(x), want)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        fresh = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), running.gate((3,), 2), nn.LayerNorm(HIDDEN)).eval()
        fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        torch.testing.assert_close(fresh(x), want)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert copy.deepcopy(model)[1].network is model[1].network
