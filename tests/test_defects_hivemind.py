"""Defects of hivemind and complaints of its users, one by one; those tested elsewhere stand in `defects`."""

from __future__ import annotations

import multiprocessing
import signal

import pytest
import torch
from defects import COMPLAINTS, HIVEMIND, check_table
from local_swarm import HIDDEN, Block, grid_uids, sgd_backend, swarm
from networks import HERE, Join, eventually
from torch import Tensor

import learning_at_home as lib
from learning_at_home.cli.options import parse_peers

pytest_plugins = ["network_fixtures"]


def test_every_defect_has_its_test() -> None:
    check_table(HIVEMIND, range(1, 12))


def test_every_complaint_has_its_test() -> None:
    check_table(COMPLAINTS, [3, 5, 8, 13, 15, 16, 19, 24])


@pytest.mark.parametrize("training", [True, False])
def test_6b02_tensors_of_the_caller_are_never_written_to(training: bool) -> None:
    with swarm(grid_uids((2, 2))) as running:
        for module in (running.gate((2, 2), 2, balance_weight=0.1), running.expert("expert.0.0")):
            module.train(training)
            x, grad = torch.randn(4, HIDDEN, requires_grad=True), torch.randn(4, HIDDEN)
            kept: list[Tensor] = [x.detach().clone(), grad.clone()]
            out = module(x)
            kept.append(out.detach().clone())
            out.backward(grad)
            for tensor, before in zip((x, grad, out), kept, strict=True):
                assert torch.equal(tensor, before)


@pytest.mark.parametrize("grid", [(3,), (2, 3), (2, 3, 2), (2, 2, 2, 2)])
def test_6b04_beam_search_takes_any_grid_and_finds_nothing_without_an_error(grid: tuple[int, ...]) -> None:
    scores = [torch.randn(5, size) for size in grid]
    with swarm(grid_uids(grid)) as running:
        gate = running.gate(grid, 3)
        for row, found in enumerate(gate.beam_search(scores)):
            total = {
                uid: sum(float(s[row, int(i)]) for s, i in zip(scores, uid.split(".")[1:], strict=True))
                for uid in running.backends
            }
            assert [expert.uid for expert in found] == sorted(total, key=lambda uid: -total[uid])[:3]
        empty = lib.GatingFunction(
            in_features=HIDDEN,
            grid_size=grid,
            network=running.network,
            k_best=3,
            uid_prefix="nobody",
            forward_timeout=0.2,
        )
        assert empty.beam_search(scores) == [[]] * 5


def test_6b05_peers_of_the_command_line_stay_whole(join: Join) -> None:
    root = join()
    (peer,) = parse_peers([f"{HERE}:{root.port}"])
    assert peer == (HERE, root.port)
    assert join(peer).wait_ready(30)


def test_6b06_nodes_help_others_unless_told_otherwise(join: Join) -> None:
    root, helper, asker = join(), join(), join(client_mode=True)
    assert helper.wait_ready(30)
    assert asker.wait_ready(30)
    assert eventually(lambda: root.status()["peers"] == 1)  # the helper
    assert asker.store("name", b"value") >= 2  # copies with root and helper
    assert (asker.status()["records"], root.status()["records"]) == (1, 1)


def test_6b07_signals_stay_the_users() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    with swarm(["expert.0"]) as running:
        running.gate((1,), 1)(torch.ones(1, HIDDEN)).sum().backward()
        assert [signal.getsignal(number) for number in numbers] == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert running.expert("expert.0")(torch.ones(1, HIDDEN)).shape == (1, HIDDEN)
    assert [signal.getsignal(number) for number in numbers] == before


def serve_and_call(answer: multiprocessing.SimpleQueue) -> None:
    """A whole swarm in a child."""
    torch.set_num_threads(1)
    with (
        lib.TesseractNetwork(port=0, host=HERE) as network,
        lib.TesseractServer(network, {"expert.0": sgd_backend("expert.0", Block())}, port=0) as server,
    ):
        lib.RemoteExpert("expert.0", HERE, server.port)(torch.ones(1, HIDDEN)).sum().backward()
        answer.put(server.experts["expert.0"].updates)


@pytest.mark.parametrize("kind", multiprocessing.get_all_start_methods())
def test_6b11_everything_works_in_children_of_every_kind(kind: str) -> None:
    context = multiprocessing.get_context(kind)
    answer = context.SimpleQueue()
    child = context.Process(target=serve_and_call, args=(answer,))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert answer.get() == 1
