"""combine: weights over the rows that are there, whatever the others hold; gradients; a whole mixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops_cases import (
    DEVICES,
    QUICK,
    RAW,
    TOLERANCE,
    Case,
    assert_near,
    assert_same,
    cases,
    make_case,
    route,
    size_of,
)
from torch import Tensor

from learning_at_home import ops
from learning_at_home.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)
modes = pytest.mark.parametrize("normalize", ["softmax", "sum", "none"])


def make_rows(case: Case, width: int, dtype: torch.dtype, missing: bool) -> dict[str, Any]:
    """Arguments of combine; rows that are missing, or nobody's, hold NaN."""
    index, _, rank, offset = route(case)
    source = RAW.dispatch(case.normal(len(index), 1), index, rank, offset, align=case.options.get("align", 1))[1]
    rows = case.normal(len(source), width, dtype=dtype)
    rows[source < 0] = torch.nan
    ok = None
    if missing:
        ok = case.chance(0.6, len(source))
        rows[~ok] = torch.nan
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    score = case.normal(*index.shape, dtype=kind).abs() + 0.5  # "sum" divides by their sum
    return {"rows": rows, "score": score, "index": index, "rank": rank, "offset": offset, "ok": ok}


@on_devices
@QUICK
@given(case=cases(), width=st.sampled_from([0, 1, 3, 64, 100, 257]), missing=st.booleans(), added=st.booleans())
def test_matches_reference(device: str, case: Case, width: int, missing: bool, added: bool) -> None:
    case.logits = case.logits.float() if device == "cuda" else case.logits
    case = case.to(device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16) + (torch.float64,) * (device == "cpu"):
        arguments = make_rows(case, width, dtype, missing)
        residual = case.normal(len(case.logits), width, dtype=dtype) if added else None
        grad = case.normal(len(case.logits), width, dtype=dtype)
        rows = arguments["rows"]
        size = size_of(rows) + (size_of(residual) if residual is not None else 0.0)
        exact = TOLERANCE[arguments["score"].dtype]  # of sums, before they are rounded to dtype
        for normalize in (0, 1, 2):
            got = RAW.combine(**arguments, normalize=normalize, residual=residual)
            want = reference.combine(**arguments, normalize=normalize, residual=residual)
            assert_near(got[0], want[0], TOLERANCE[dtype], size)
            assert_near(got[1], want[1], exact)
            backward = {"grad": grad, **arguments, "weight": got[1], "normalize": normalize}
            got = RAW.combine_backward(**backward)
            want = reference.combine_backward(**backward)
            assert_near(got[0], want[0], TOLERANCE[dtype])
            backward.update(grad=grad.abs(), rows=rows.abs(), normalize=reference.NONE)
            assert_near(got[1], want[1], exact, size_of(reference.combine_backward(**backward)[1]))


@on_devices
@modes
def test_no_live_row_gives_zeros_or_the_residual(device: str, normalize: str) -> None:
    case = make_case(1, 7, [3, 3], 2).to(device)
    arguments = make_rows(case, 5, torch.float32, missing=False)
    arguments["rows"] = torch.full_like(arguments["rows"], torch.nan).requires_grad_()
    arguments["score"].requires_grad_()
    arguments["ok"] = torch.zeros(14, dtype=torch.bool, device=device)
    out, weight = ops.combine(**arguments, normalize=normalize)
    assert not out.any()
    assert not weight.any()
    out.sum().backward()
    assert not arguments["rows"].grad.any()
    assert not arguments["score"].grad.any()
    residual = torch.randn(7, 5, device=device)
    assert_same(ops.combine(**arguments, normalize=normalize, residual=residual)[0].detach(), residual)


def test_weights() -> None:
    case = make_case(2, 50, [4, 4], 4, capacity=9)
    arguments = make_rows(case, 3, torch.float32, missing=True)
    index, rank, ok = arguments["index"], arguments["rank"], arguments["ok"]
    row = arguments["offset"][index.clamp(min=0).long()] + rank
    live = (rank >= 0) & ok[row.clamp(min=0).long()]
    assert live.any(1).sum() > live.all(1).sum() > 0
    for normalize, sums in (("softmax", live.any(1).float()), ("sum", live.any(1).float())):
        weight = ops.combine(**arguments, normalize=normalize)[1]
        assert torch.equal(weight > 0, live)
        torch.testing.assert_close(weight.sum(1), sums)
    weight = ops.combine(**arguments, normalize="none")[1]
    assert torch.equal(weight, arguments["score"] * live)
    zero = torch.zeros_like(arguments["score"])
    assert not ops.combine(**{**arguments, "score": zero}, normalize="sum")[0].any()


@on_devices
@pytest.mark.parametrize("align", [1, 16])
def test_round_trip_is_the_identity(device: str, align: int) -> None:
    case = make_case(3, 200, [8, 8], 4, 0.5, align=align).to(device)
    index, score, rank, offset = route(case)
    x = case.normal(200, 33)
    rows, source = ops.dispatch(x, index, rank, offset, align=align)
    rows[source < 0] = torch.nan
    exact, _ = ops.combine(rows, torch.full_like(score, 0.25), index, rank, offset, normalize="none")
    assert_same(exact, x)
    for normalize in ("softmax", "sum"):
        assert_near(ops.combine(rows, score.abs(), index, rank, offset, normalize=normalize)[0], x, 1e-6)


@modes
def test_gradcheck(normalize: str) -> None:
    case = make_case(4, 8, [3, 3], 3, 6, capacity=4)
    arguments = make_rows(case, 5, torch.float64, missing=True)
    rows = arguments.pop("rows").nan_to_num().requires_grad_()
    score = arguments.pop("score").requires_grad_()
    residual = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)

    def combined(rows: Tensor, score: Tensor, residual: Tensor) -> Tensor:
        return ops.combine(rows, score, **arguments, normalize=normalize, residual=residual)[0]

    assert torch.autograd.gradcheck(combined, (rows, score, residual))


@on_devices
@pytest.mark.parametrize("grid", [[6], [3, 3], [2, 3, 2], [4, 1, 3]])
def test_equals_a_dense_mixture(device: str, grid: list[int]) -> None:
    """All experts chosen: the sparse path is the softmax mixture of all of them, with its gradients."""
    case = make_case(5, 31, grid, 1).to(device)
    experts = case.normal(case.experts, 4, 4)
    values = []
    for dense in (False, True):
        logits, x = (
            case.logits.clone().requires_grad_(),
            torch.ones(31, 4, device=device).cumsum(0).requires_grad_(),
        )
        if dense:
            weight = reference.grid_scores(logits, grid).softmax(1)
            out = torch.einsum("te,eij,ti->tj", weight, experts, x)
        else:
            index, score, rank, offset, _, _ = ops.route_grid(logits, grid, case.experts)
            rows, _ = ops.dispatch(x, index, rank, offset)
            rows = torch.cat([part @ w for part, w in zip(rows.split(31), experts, strict=True)])
            out, _ = ops.combine(rows, score, index, rank, offset)
        out.square().sum().backward()
        values.append((out.detach(), logits.grad, x.grad))
    for x, y in zip(*values, strict=True):
        assert_near(x, y, 1e-5)


@on_devices
def test_rows_of_any_shape(device: str) -> None:
    arguments = make_rows(make_case(6, 9, [5], 2).to(device), 12, torch.float32, missing=True)
    flat, weight = ops.combine(**arguments)
    arguments["rows"] = arguments["rows"].view(18, 3, 4)
    out, same = ops.combine(**arguments)
    assert_same(out.flatten(1), flat)
    assert_same(same, weight)
    assert not weight.requires_grad


@on_devices
def test_deterministic_also_beyond_the_caches(device: str) -> None:
    """More than 4 MiB of rows: gradients are written past the caches."""
    case = make_case(7, 700, [16, 16], 8, 0.9).to(device)
    arguments = make_rows(case, 320, torch.float32, missing=True)
    grad = case.normal(700, 320)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 2, 3):
            torch.set_num_threads(number)
            out, weight = RAW.combine(**arguments)
            results.append([out, weight, *RAW.combine_backward(grad=grad, **arguments, weight=weight)])
    finally:
        torch.set_num_threads(threads)
    want = reference.combine_backward(grad=grad, **arguments, weight=results[0][1])
    assert_near(results[0][2], want[0], 1e-6)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert_same(x, y)


def test_compiles_without_graph_breaks() -> None:
    def mixture(logits: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        index, score, rank, offset, _, _ = ops.route_grid(logits, (4, 4), 2)
        rows, _ = ops.dispatch(x, index, rank, offset)
        return ops.combine(rows * scale, score, index, rank, offset, residual=x)[0]

    compiled = torch.compile(mixture, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (10, 17):
        grads = []
        for function in (mixture, compiled):
            torch.manual_seed(tokens)
            inputs = [torch.randn(tokens, n, requires_grad=True) for n in (8, 6)]
            scale = torch.tensor(1.5, requires_grad=True)
            out = function(*inputs, scale)
            grads.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, scale])])
        for x, y in zip(*grads, strict=True):
            assert_near(x, y, 1e-6)


@on_devices
@pytest.mark.parametrize("normalize", [0, 1, 2])
def test_opcheck(device: str, normalize: int) -> None:
    case = make_case(8, 11, [3, 4], 3, 5).to(device)
    arguments = make_rows(case, 6, torch.float32, missing=normalize != 1)
    arguments["rows"] = arguments["rows"].nan_to_num()
    residual = case.normal(11, 6) if normalize == 0 else None
    options = {"ok": arguments.pop("ok"), "normalize": normalize}
    torch.library.opcheck(RAW.combine.default, tuple(arguments.values()), {**options, "residual": residual})
    _, weight = RAW.combine(**arguments, **options)
    rows, score, *plan = arguments.values()
    backward = (case.normal(11, 6), rows, score, weight, *plan)
    torch.library.opcheck(RAW.combine_backward.default, backward, options)


CASE = make_rows(make_case(9, 4, [3], 2), 2, torch.float32, missing=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": None}, TypeError, "rows: expected a tensor, got NoneType"),
        ({"rows": torch.ones(8, 2).long()}, TypeError, "rows: expected torch.float32 or .*, got torch.int64"),
        ({"score": torch.ones(4, 3)}, ValueError, r"score: expected shape \[4, 2\], got \[4, 3\]"),
        ({"ok": torch.ones(8)}, TypeError, "ok: expected torch.bool, got torch.float32"),
        ({"ok": torch.ones(7).bool()}, ValueError, r"ok: expected shape \[8\], got \[7\]"),
        ({"normalize": "mean"}, ValueError, "normalize: expected one of softmax, sum, none, got 'mean'"),
        ({"residual": torch.ones(4, 3)}, ValueError, r"residual: expected shape \[4, 2\], got \[4, 3\]"),
        ({"residual": torch.ones(4, 2).double()}, TypeError, "residual: expected torch.float32"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.combine(**{**CASE, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RAW.combine(**CASE, normalize=3), "normalize must be 0, 1 or 2"),
        (lambda: RAW.combine(**{**CASE, "score": torch.ones(4, 2).double()}), "score must be Float"),
        (lambda: RAW.combine(**{**CASE, "index": torch.ones(4, 2)}), "Int"),
        (lambda: RAW.combine(**{**CASE, "rows": torch.ones(2, 8).t()}), "rows must be contiguous"),
        (lambda: RAW.combine(**CASE, residual=torch.ones(3, 2)), "size 0 of residual must be 4, is 3"),
    ],
)
def test_raw_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()
