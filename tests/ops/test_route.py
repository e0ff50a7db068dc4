"""route: against its reference, its definition and route_grid; biases, groups, sigmoids and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops_cases import DEVICES, QUICK, RAW, assert_near, assert_same, make_case, size_of
from torch import Tensor

from learning_at_home import ops
from learning_at_home.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)


@st.composite
def axis_cases(draw: st.DrawFn) -> tuple[Tensor, int, dict[str, Any]]:
    """(logits, k, options): up to 8 groups of up to 70 experts, void and tied logits, dead experts, biases."""
    groups = draw(st.integers(1, 8))
    case = make_case(
        seed=draw(st.integers(0, 2**31)),
        tokens=draw(st.sampled_from([0, 1, 7, 65, 130])),
        grid=[groups * draw(st.sampled_from([1, 2, 5, 16, 33, 70]))],
        k=draw(st.sampled_from([1, 2, 8, 32])),
        alive=draw(st.sampled_from([None, 0, 1, 3, 0.3, 0.9])),
        flavour=draw(st.sampled_from(["normal", "ties", "void", "huge"])),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
        groups=groups,
        top_groups=draw(st.integers(1, groups)),
        capacity=draw(st.sampled_from([0, 0, 5])),
        align=draw(st.sampled_from([1, 1, 4])),
    )
    if draw(st.booleans()):
        bias = case.normal(case.experts, dtype=case.logits.dtype)
        case.options["bias"] = bias.masked_fill(case.chance(0.1, case.experts), draw(st.sampled_from([0.0, math.nan])))
    return case.logits, case.k, case.options


def moved(options: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}


@on_devices
@QUICK
@given(case=axis_cases())
def test_logits_match_the_reference_bit_for_bit(device: str, case: tuple[Tensor, int, dict[str, Any]]) -> None:
    logits, k, options = case
    if device == "cuda":
        logits, options = logits.float().cuda(), moved(options, device)
        options |= {"bias": options["bias"].float()} if "bias" in options else {}
    got, want = RAW.route(logits, k, **options), reference.route(logits, k, **options)
    for x, y in zip(got[:4], want[:4], strict=True):
        assert_same(x, y)


def key_of(logits: Tensor, options: dict[str, Any]) -> Tensor:
    """[T, E] sigmoid + bias, minus infinity where not to be chosen for want of life or of a number."""
    key = logits.sigmoid() + options.get("bias", torch.zeros_like(logits[:1]))
    usable = reference.usable_experts(logits, options.get("alive")) & key.isfinite()
    return key.masked_fill(~usable, -math.inf)


@QUICK
@given(case=axis_cases())
def test_sigmoids_choose_the_best_keys(case: tuple[Tensor, int, dict[str, Any]]) -> None:
    """Two ways to compute a sigmoid differ in the last bit: the chosen keys, not their ids, are compared."""
    logits, k, options = case
    options["groups"] = options["top_groups"] = 1
    index, score, rank, offset, _, _ = RAW.route(logits, k, score=1, **options)
    key = torch.nn.functional.pad(key_of(logits, options), (0, max(0, k - logits.size(1))), value=-math.inf)
    best = key.sort(dim=1, descending=True).values[:, :k]
    void = index < 0
    assert torch.equal(void, best == -math.inf)
    tolerance = 1e-14 if logits.dtype == torch.float64 else 3e-7
    chosen_key = key.gather(1, index.clamp(min=0).long())
    torch.testing.assert_close(chosen_key.masked_fill(void, 0.0), best.masked_fill(void, 0.0), rtol=0, atol=tolerance)
    assert all(len(set(row)) == len(row) for row in [[e for e in row if e >= 0] for row in index.tolist()])
    want = logits.sigmoid().gather(1, index.clamp(min=0).long()).masked_fill(void, 0.0)
    torch.testing.assert_close(score, want, rtol=tolerance, atol=0)
    layout = {name: options[name] for name in ("capacity", "align")}
    for x, y in zip((rank, offset), reference.plan(index, logits.size(1), **layout), strict=False):
        assert_same(x, y)


def by_definition(logits: Tensor, k: int, bias: Tensor, groups: int, top_groups: int) -> list[list[int]]:
    result = []
    for row in (logits.sigmoid() + bias).tolist():
        size = len(row) // groups
        value = [sum(sorted(row[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        kept = sorted(range(groups), key=lambda g: (-value[g], g))[:top_groups]
        usable = [e for e in range(len(row)) if e // size in kept]
        result.append(sorted(usable, key=lambda e: (-row[e], e))[:k])
    return result


@on_devices
@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (4, 2), (8, 8), (8, 3), (32, 1)])
def test_deepseek_routing_is_its_definition(device: str, groups: int, top_groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 64, generator=generator, dtype=torch.float64)
    bias = torch.randn(64, generator=generator, dtype=torch.float64) * 0.3
    if device == "cuda":
        logits, bias = logits.float(), bias.float()
    want = by_definition(logits, 2, bias, groups, top_groups)
    options = {"groups": groups, "top_groups": top_groups, "score": "sigmoid", "bias": bias.to(device)}
    assert ops.route(logits.to(device), 2, **options).index.tolist() == want


@on_devices
def test_a_group_of_dead_experts_is_never_taken(device: str) -> None:
    logits = torch.tensor([[9.0, 9.0, -5.0, -6.0, 1.0, 1.0]], device=device)
    alive = ops.alive_bitmap([2, 3, 4, 5], 6).to(device)
    assert ops.route(logits, 3, alive=alive, groups=3, top_groups=2).index.tolist() == [[4, 5, 2]]
    assert ops.route(logits, 3, alive=alive, groups=3, top_groups=1).index.tolist() == [[4, 5, -1]]
    one = ops.alive_bitmap([0, 2, 3], 6).to(device)  # the group's only key is its value
    assert ops.route(logits, 2, alive=one, groups=3, top_groups=1).index.tolist() == [[0, -1]]
    nothing = ops.alive_bitmap([], 6).to(device)
    routed = ops.route(logits, 2, alive=nothing, groups=3, score="sigmoid", want_stats=True)
    assert routed.index.tolist() == [[-1, -1]]
    assert not routed.score.any()
    assert not routed.stats.any()
    assert not routed.lse.any()


@on_devices
def test_without_options_it_is_route_grid(device: str) -> None:
    case = make_case(3, 300, [100], 6, 0.8, "void").to(device)
    got = RAW.route(case.logits, 6, **case.options, want_stats=True)
    want = RAW.route_grid(case.logits, [100], 6, **case.options, want_stats=True)
    for x, y in zip(got, want, strict=True):
        assert_same(x, y)


@on_devices
def test_a_bias_steers_the_choice_and_no_score(device: str) -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]], device=device)
    bias = torch.tensor([-5.0, 0.0, 1.5], device=device, requires_grad=True)
    for score, values in (("softmax", logits), ("sigmoid", logits.sigmoid())):
        routed = ops.route(logits, 2, bias=bias, score=score)
        assert routed.index.tolist() == [[2, 1]]
        torch.testing.assert_close(routed.score, values[:, [2, 1]])
        assert not routed.score.requires_grad


@on_devices
@pytest.mark.parametrize("score", [0, 1])
@pytest.mark.parametrize("flavour", ["normal", "void"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_and_gradients_match_the_reference(
    device: str, score: int, flavour: str, dtype: torch.dtype
) -> None:
    if device == "cuda":
        dtype = torch.float32
    case = make_case(4, 333, [40], 3, 0.7, flavour, dtype).to(device)
    alive = case.options["alive"]
    got = RAW.route(case.logits, 3, alive=alive, score=score, want_stats=True)
    want = reference.route(case.logits, 3, alive=alive, score=score, want_stats=True)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert_near(got[4], want[4], tolerance)
    assert_same(got[5][0], want[5][0])
    assert_near(got[5][1], want[5][1], tolerance)
    assert got[5][1].sum().item() == pytest.approx((got[0] >= 0).any(1).float().mean().item(), abs=1e-5)
    grads = [case.normal(*x.shape, dtype=dtype) for x in (got[1], got[4], got[5])]
    for keep in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        sent = [grad if kept else None for grad, kept in zip(grads, keep, strict=True)]
        arguments = (*sent, case.logits, [40], got[0], got[4])
        assert_near(
            RAW.route_backward(*arguments, alive=alive, score=score),
            reference.route_backward(*arguments, alive=alive, score=score),
            5 * tolerance,
            size_of(*(grad for grad in sent if grad is not None)),
        )


@on_devices
@pytest.mark.parametrize("flavour", ["huge", "void"])
def test_far_logits_give_finite_sigmoids(device: str, flavour: str) -> None:
    logits = make_case(5, 50, [20], 4, None, flavour).to(device).logits.requires_grad_()
    routed = ops.route(logits, 4, score="sigmoid", want_stats=True)
    (routed.score.sum() + routed.stats[1].square().sum()).backward()
    assert logits.grad is not None
    for tensor in (routed.score, routed.stats, logits.grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_gradcheck(score: str) -> None:
    logits = (torch.randperm(45).view(5, 9).double() ** 1.5 * 0.01).requires_grad_()  # well apart: no choice changes
    alive = ops.alive_bitmap(range(1, 9), 9)
    bias = torch.linspace(-0.2, 0.2, 9, dtype=torch.float64)

    def routed(x: Tensor) -> tuple[Tensor, ...]:
        chosen = ops.route(x, 2, alive=alive, bias=bias, score=score, groups=3, top_groups=2, want_stats=True)
        return chosen.score, chosen.lse, chosen.stats[1]

    assert torch.autograd.gradcheck(routed, (logits,), eps=1e-7)


@on_devices
def test_deterministic(device: str) -> None:
    logits = torch.randn(1500, 96, device=device)
    options = {"score": 1, "bias": torch.randn(96, device=device) * 0.1, "groups": 8, "top_groups": 4}
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 2, 3):
            torch.set_num_threads(number)
            outputs = RAW.route(logits, 4, **options, want_stats=True)
            grads = [torch.ones_like(outputs[i]) for i in (1, 4, 5)]
            backward = RAW.route_backward(*grads, logits, [96], outputs[0], outputs[4], score=1)
            results.append([*outputs, backward])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert_same(x, y)


@on_devices
@pytest.mark.parametrize("wanted", [{}, {"want_stats": True, "capacity": 3, "align": 4}])
def test_opcheck(device: str, wanted: dict[str, Any]) -> None:
    logits, bias = torch.randn(11, 12, device=device), torch.randn(12, device=device)
    options = {"bias": bias, "score": 1, "groups": 4, "top_groups": 2, **wanted}
    torch.library.opcheck(RAW.route.default, (logits, 3), options)
    index, score, _, _, lse, stats = RAW.route(logits, 3, **options)
    grads = [torch.ones_like(x) if x.numel() else None for x in (score, lse, stats)]
    torch.library.opcheck(RAW.route_backward.default, (*grads, logits, [12], index, lse), {"score": 1})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.route(torch.ones(4), 1), ValueError, r"logits: expected shape \[T, E\], got \[4\]"),
        (lambda: ops.route(torch.ones(2, 0), 1), ValueError, "E: expected 1 to 65536, got 0"),
        (lambda: ops.route(torch.ones(2, 4), 0), ValueError, "k: expected 1 to 32, got 0"),
        (lambda: ops.route(torch.ones(2, 4), 1, score="tanh"), ValueError, "score: expected one of softmax, sigmoid"),
        (
            lambda: ops.route(torch.ones(2, 4), 1, groups=3),
            ValueError,
            "groups: expected a divisor of 4 experts, got 3",
        ),
        (lambda: ops.route(torch.ones(2, 66), 1, groups=33), ValueError, "groups: expected 1 to 32, got 33"),
        (lambda: ops.route(torch.ones(2, 4), 1, groups=2, top_groups=3), ValueError, "top_groups: expected 1 to 2"),
        (lambda: ops.route(torch.ones(2, 4), 1, bias=torch.ones(3)), ValueError, r"bias: expected shape \[4\]"),
        (lambda: ops.route(torch.ones(2, 4), 1, bias=torch.ones(4).int()), TypeError, "bias: expected torch.float32"),
        (lambda: RAW.route(torch.ones(2, 4), 1, score=2), RuntimeError, "score must be 0 or 1, is 2"),
        (lambda: RAW.route(torch.ones(2, 4), 1, groups=3), RuntimeError, "groups must be 1 to 32 and divide 4"),
        (lambda: RAW.route(torch.ones(2, 4), 1, bias=torch.ones(4).double()), RuntimeError, "bias must be Float"),
        (
            lambda: RAW.route_backward(
                None, None, None, torch.ones(2, 4), [2, 2], torch.ones(2, 1).int(), torch.ones(2), score=1
            ),
            RuntimeError,
            "grid of one axis",
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
