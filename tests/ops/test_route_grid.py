"""route_grid: kernels against reference, reference against definition, gradients, statistics, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from ops_cases import DEVICES, QUICK, RAW, Case, assert_near, assert_same, cases, make_case, route, size_of
from torch import Tensor

from learning_at_home import ops
from learning_at_home.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)


def by_definition(case: Case) -> list[list[int]]:
    """Indices by sorting in Python every expert that is alive and has a finite score."""
    alive = case.options.get("alive")
    mask = [True] * case.experts if alive is None else reference.unpack_alive(alive, case.experts).tolist()
    result = []
    for score in reference.grid_scores(case.logits, case.grid).tolist():
        usable = [e for e in range(case.experts) if mask[e] and math.isfinite(score[e])]
        best = sorted(usable, key=lambda e: (-score[e], e))[: case.k]
        result.append(best + [-1] * (case.k - len(best)))
    return result


def check_against_reference(case: Case) -> None:
    got = RAW.route_grid(case.logits, case.grid, case.k, **case.options)
    want = reference.route_grid(case.logits, case.grid, case.k, **case.options)
    for x, y in zip(got[:4], want[:4], strict=True):
        assert_same(x, y)


@on_devices
@QUICK
@given(case=cases())
def test_matches_reference(device: str, case: Case) -> None:
    if device == "cuda":
        case.logits = case.logits.float()
    check_against_reference(case.to(device))


@on_devices
@pytest.mark.parametrize("alive", [None, 0, 1, 2, 3, 0.9])
@pytest.mark.parametrize(
    "grid", [[1], [256], [1000], [16, 16], [1, 70], [70, 1], [5, 7, 3], [2, 3, 4, 5], [2] * 8, [32, 33]]
)
def test_grids(device: str, grid: list[int], alive: int | float | None) -> None:
    for flavour in ("normal", "ties", "void"):
        check_against_reference(make_case(1, 130, grid, 8, alive, flavour).to(device))


@on_devices
@pytest.mark.parametrize("grid", [[65536], [256, 256], [16] * 4, [32768, 2], [2, 32768]])
@pytest.mark.parametrize("alive", [None, 5, 0.1])
def test_the_largest_grids(device: str, grid: list[int], alive: int | float | None) -> None:
    check_against_reference(make_case(2, 3, grid, 32, alive, "normal", align=4).to(device))


@QUICK
@given(case=cases())
def test_reference_is_the_definition(case: Case) -> None:
    case.options.update(beam=0)
    case.logits = case.logits[:8]
    assert route(case)[0].tolist() == by_definition(case)
    assert reference.route_grid(case.logits, case.grid, case.k, **case.options)[0].tolist() == by_definition(case)


@on_devices
def test_ties_go_to_the_lower_id(device: str) -> None:
    assert ops.route_grid(torch.zeros(2, 8, device=device), (4, 4), 3).index.tolist() == [[0, 1, 2]] * 2
    # the best row comes last, and an earlier row reaches the same score
    logits = torch.tensor([[0.0, 1.0, 1.0, 0.0]], device=device)
    assert ops.route_grid(logits, (2, 2), 3).index.tolist() == [[2, 0, 3]]
    signed = torch.tensor([[-0.0, 0.0, -0.0]], device=device)
    assert ops.route_grid(signed, (3,), 3).index.tolist() == [[0, 1, 2]]


@on_devices
@pytest.mark.parametrize("grid", [[300], [40, 40], [16] * 4])
def test_a_gate_of_zeros(device: str, grid: list[int]) -> None:
    """All experts tie: the search must not visit them all to find that the first ones win."""
    logits = torch.zeros(1000, sum(grid), device=device)
    index = ops.route_grid(logits, grid, 4).index
    assert torch.equal(index.cpu(), torch.arange(4, dtype=torch.int32).expand(1000, 4))


@on_devices
def test_neighbouring_floats_are_told_apart(device: str) -> None:
    base = torch.full((1, 40), 3.7)
    base[0, 33] = torch.nextafter(base[0, 33], torch.tensor(9.0))
    chosen = ops.route_grid(base.to(device), (40,), 2)
    assert chosen.index.tolist() == [[33, 0]]
    assert torch.equal(chosen.score.cpu(), base[:, [33, 0]])


@on_devices
def test_void_experts(device: str) -> None:
    logits = torch.tensor([[math.nan, 1.0, -math.inf, 2.0, math.inf, 0.5]], device=device)
    chosen = ops.route_grid(logits, (6,), 5, want_lse=True)
    assert chosen.index.tolist() == [[3, 1, 5, -1, -1]]
    assert chosen.score.tolist() == [[2.0, 1.0, 0.5, 0.0, 0.0]]
    assert chosen.rank.tolist() == [[0, 0, 0, -1, -1]]
    assert_near(chosen.lse, torch.tensor([2.0, 1.0, 0.5]).logsumexp(0, keepdim=True), 1e-6)
    huge = torch.full((1, 2), torch.finfo(torch.float32).max, device=device)  # the sum overflows
    assert ops.route_grid(huge, (1, 1), 1).index.tolist() == [[-1]]


@on_devices
def test_nothing_alive(device: str) -> None:
    alive = ops.alive_bitmap(torch.zeros(6, dtype=torch.bool, device=device), 6)
    logits = torch.randn(5, 5, device=device, requires_grad=True)
    chosen = ops.route_grid(logits, (2, 3), 2, alive=alive, want_stats=True)
    assert (chosen.index == -1).all()
    assert (chosen.rank == -1).all()
    assert not chosen.offset.any()
    assert not chosen.lse.any()
    assert not chosen.stats.any()
    (chosen.score.sum() + chosen.lse.sum() + chosen.stats.sum()).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@on_devices
def test_rank_capacity_and_align(device: str) -> None:
    logits = torch.tensor([[1.0, 0.0]], device=device).expand(300, 2)
    chosen = ops.route_grid(logits, (2,), 2, capacity=200, align=64)
    want = torch.arange(300, dtype=torch.int32)
    want[200:] = -1
    assert torch.equal(chosen.rank.cpu(), want[:, None].expand(300, 2))
    assert chosen.offset.tolist() == [0, 256, 512]
    counted = ops.route_grid(logits, (2,), 2, capacity=200, want_stats=True)
    assert counted.offset.tolist() == [0, 200, 400]
    assert counted.stats[0].tolist() == [300.0, 300.0]  # before capacity


@on_devices
def test_beam(device: str) -> None:
    case = make_case(3, 60, [3, 4, 5], 4, 0.5).to(device)
    exact = route(case)
    case.options["beam"] = 12  # as many as there are prefixes
    for x, y in zip(route(case), exact, strict=True):
        assert_same(x, y)
    logits = torch.tensor([[3.0, 2.0, 1.0, 5.0, 4.0]], device=device)
    dead_first_prefix = ops.alive_bitmap([2, 3, 4, 5], 6).to(device)
    chosen = ops.route_grid(logits, (3, 2), 3, alive=dead_first_prefix, beam=1)
    assert chosen.index.tolist() == [[2, 3, -1]]  # a dead prefix takes no place of the beam


@on_devices
@pytest.mark.parametrize("flavour", ["void", "huge"])
@pytest.mark.parametrize("grid", [[257], [16, 17], [5, 6, 7]])
def test_statistics(device: str, grid: list[int], flavour: str) -> None:
    case = make_case(4, 333, grid, 3, 0.7, flavour).to(device)
    got = RAW.route_grid(case.logits, grid, 3, **case.options, want_stats=True)
    want = reference.route_grid(case.logits, grid, 3, **case.options, want_stats=True)
    assert_near(got[4], want[4], 1e-6)
    assert_same(got[5][0], want[5][0])
    assert_near(got[5][1], want[5][1], 1e-6)
    routed = (got[0] >= 0).any(1).float().mean().item()
    assert got[5][1].sum().item() == pytest.approx(routed, abs=1e-5)
    lse = RAW.route_grid(case.logits, grid, 3, **case.options, want_lse=True)
    assert_same(lse[4], got[4])
    assert lse[5].numel() == 0


@on_devices
@QUICK
@given(case=cases())
def test_backward_matches_reference(device: str, case: Case) -> None:
    case.logits = case.logits.float().clamp(-1e4, 1e4) if device == "cuda" else case.logits.clamp(-1e4, 1e4)
    case = case.to(device)
    dtype = case.logits.dtype
    index, score, _, _, lse, stats = RAW.route_grid(case.logits, case.grid, case.k, **case.options, want_stats=True)
    grads = [case.normal(*x.shape, dtype=dtype) for x in (score, lse, stats)]
    for keep in ((1, 0, 0), (0, 1, 0), (1, 1, 1)):
        chosen = [grad if kept else None for grad, kept in zip(grads, keep, strict=True)]
        arguments = (*chosen, case.logits, case.grid, index, lse)
        got = RAW.route_backward(*arguments, alive=case.options.get("alive"))
        want = reference.route_backward(*arguments, alive=case.options.get("alive"))
        size = size_of(*(grad for grad in chosen if grad is not None))
        assert_near(got, want, 1e-12 if dtype == torch.float64 else 1e-5, size)


@pytest.mark.parametrize("grid", [[9], [4, 3], [2, 3, 2]])
def test_gradcheck(grid: list[int]) -> None:
    # distinct, well separated logits: finite differences must not change the choice
    logits = (torch.randperm(5 * sum(grid)).view(5, -1).double() ** 1.5 * 0.01).requires_grad_()
    alive = ops.alive_bitmap(torch.arange(math.prod(grid))[1:], math.prod(grid))

    def routed(x: Tensor) -> tuple[Tensor, ...]:
        chosen = ops.route_grid(x, grid, 2, alive=alive, want_stats=True)
        return chosen.score, chosen.lse, chosen.stats[1]

    assert torch.autograd.gradcheck(routed, (logits,), eps=1e-7)


@on_devices
def test_balance_loss_equals_a_dense_softmax(device: str) -> None:
    case = make_case(5, 50, [4, 6], 2, 0.8).to(device)
    logits = case.logits.requires_grad_()
    chosen = ops.route_grid(logits, case.grid, 2, **case.options, want_stats=True)
    loss = 24 * (chosen.stats[0] / chosen.stats[0].sum() * chosen.stats[1]).sum() + chosen.lse.square().mean()
    (got,) = torch.autograd.grad(loss, logits)

    score = (logits[:, :4, None] + logits[:, None, 4:]).flatten(1)
    score = score.masked_fill(~reference.unpack_alive(case.options["alive"], 24), -math.inf)
    used = torch.nn.functional.one_hot(chosen.index.long(), 24).sum((0, 1)) / chosen.index.numel()
    dense = 24 * (used * score.softmax(1).mean(0)).sum() + score.logsumexp(1).square().mean()
    (want,) = torch.autograd.grad(dense, logits)
    assert_near(loss, dense, 1e-6)
    assert_near(got, want, 1e-5)


@on_devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_scored_in_float32(device: str, dtype: torch.dtype) -> None:
    logits = make_case(6, 20, [4, 4], 2).logits.to(device, dtype).requires_grad_()
    chosen = ops.route_grid(logits, (4, 4), 2)
    for x, y in zip(chosen[:4], ops.route_grid(logits.float(), (4, 4), 2)[:4], strict=True):
        assert_same(x, y)
    chosen.score.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.sum().item() == 20 * 2 * 2


def test_gradients_are_those_of_the_public_function() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    assert ops.route_grid(logits, (3, 3), 2).score.grad_fn is not None
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):  # the raw op has none
        RAW.route_grid(logits, [3, 3], 2)[1].sum().backward()
    assert logits.grad is None
    ops.route_grid(logits, (3, 3), 2).score.sum().backward()
    assert logits.grad is not None


@on_devices
def test_deterministic(device: str) -> None:
    case = make_case(7, 1500, [16, 16], 4, 0.9, "ties").to(device)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 2, 3):
            torch.set_num_threads(number)
            outputs = RAW.route_grid(case.logits, case.grid, 4, **case.options, want_stats=True)
            grads = [torch.ones_like(outputs[i]) for i in (1, 4, 5)]
            alive = case.options["alive"]
            grad = RAW.route_backward(*grads, case.logits, case.grid, outputs[0], outputs[4], alive=alive)
            results.append([*outputs, grad])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert_same(x, y)


@on_devices
@pytest.mark.parametrize("wanted", [{}, {"want_lse": True}, {"want_stats": True, "capacity": 3, "align": 4}])
def test_opcheck(device: str, wanted: dict[str, Any]) -> None:
    case = make_case(8, 11, [3, 4], 3, 5).to(device)
    arguments = (case.logits, case.grid, 3)
    torch.library.opcheck(RAW.route_grid.default, arguments, {**case.options, **wanted})
    index, score, _, _, lse, stats = RAW.route_grid(*arguments, **case.options, **wanted)
    grad_lse = torch.ones_like(lse) if lse.numel() else None
    grad_stats = torch.ones_like(stats) if stats.numel() else None
    backward = (torch.ones_like(score), grad_lse, grad_stats, case.logits, case.grid, index, lse)
    torch.library.opcheck(RAW.route_backward.default, backward, case.options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.route_grid([1.0], (2,), 1), TypeError, "logits: expected a tensor, got list"),
        (
            lambda: ops.route_grid(torch.ones(2, 4).int(), (4,), 1),
            TypeError,
            "logits: expected torch.float32",
        ),
        (
            lambda: ops.route_grid(torch.ones(2, 5), (2, 2), 1),
            ValueError,
            r"logits: .*\[T, 4\], got \[2, 5\]",
        ),
        (lambda: ops.route_grid(torch.ones(4), (4,), 1), ValueError, r"logits: .*got \[4\]"),
        (lambda: ops.route_grid(torch.ones(2, 4), (), 1), ValueError, "grid: expected 1 to 8"),
        (lambda: ops.route_grid(torch.ones(2, 4), (4, 0), 1), ValueError, r"grid: .*got \[4, 0\]"),
        (lambda: ops.route_grid(torch.ones(2, 514), (257, 257), 1), ValueError, "at most 65536"),
        (lambda: ops.route_grid(torch.ones(2, 4), (4,), 0), ValueError, "k: expected 1 to 32, got 0"),
        (lambda: ops.route_grid(torch.ones(2, 4), (4,), 33), ValueError, "k: expected 1 to 32, got 33"),
        (lambda: ops.route_grid(torch.ones(2, 4), (4,), 1, align=0), ValueError, "align: expected 1 or more"),
        (lambda: ops.route_grid(torch.ones(2, 4), (4,), 1, capacity=-1), ValueError, "capacity: expected 0"),
        (lambda: ops.route_grid(torch.ones(2, 4), (4,), 1, beam=-1), ValueError, "beam: expected 0 or more"),
        (
            lambda: ops.route_grid(torch.ones(2, 4), (4,), 1, alive=torch.ones(4)),
            TypeError,
            "alive: expected",
        ),
        (
            lambda: ops.route_grid(torch.ones(2, 4), (4,), 1, alive=torch.ones(2).int()),
            ValueError,
            r"alive: expected shape \[1\], got \[2\]",
        ),
        (lambda: RAW.route_grid(torch.ones(2, 4).half(), [4], 1), RuntimeError, "logits must be Float"),
        (lambda: RAW.route_grid(torch.ones(2, 4), [4], 33), RuntimeError, "k must be 1 to 32"),
        (lambda: RAW.route_grid(torch.ones(4, 2).t(), [4], 1), RuntimeError, "must be contiguous"),
        (lambda: RAW.route_grid(torch.ones(2, 4), [4], 1, align=2**31), RuntimeError, "rows"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@on_devices
def test_alive_bitmap(device: str) -> None:
    mask = torch.rand(5, 14, device=device) < 0.5
    mask[2, 3] = True  # flat id 31, the sign bit of word 0
    bitmap = ops.alive_bitmap(mask, 70)
    assert bitmap.dtype == torch.int32
    assert bitmap.shape == (3,)
    assert torch.equal(reference.unpack_alive(bitmap, 70), mask.flatten())
    ids = mask.flatten().nonzero()[:, 0]
    assert_same(ops.alive_bitmap(ids, 70), bitmap)
    assert_same(ops.alive_bitmap([*ids.tolist(), 31], 70), bitmap)  # any order, repeats allowed
    assert ops.alive_bitmap([], 33).tolist() == [0, 0]
    with pytest.raises(ValueError, match="alive: expected ids from 0 to 69, got 3 to 70"):
        ops.alive_bitmap([3, 70], 70)
    with pytest.raises(ValueError, match="alive: expected a mask of 71 elements"):
        ops.alive_bitmap(mask, 71)
    with pytest.raises(TypeError, match="alive: expected a bool mask or integer ids"):
        ops.alive_bitmap(torch.ones(3), 70)
