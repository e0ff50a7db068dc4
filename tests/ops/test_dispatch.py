"""dispatch: every token in the rows of its experts, in order; nothing else in any row; gradients."""

from __future__ import annotations

from collections.abc import Callable

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

from learning_at_home import ops
from learning_at_home.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)
widths = st.sampled_from([0, 1, 3, 16, 64, 100, 257])


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
@QUICK
@given(case=cases(), width=widths)
def test_matches_reference(device: str, dtype: torch.dtype, case: Case, width: int) -> None:
    case.logits = case.logits.float() if device == "cuda" else case.logits
    case = case.to(device)
    index, _, rank, offset = route(case)
    x = (case.normal(len(index), width) * 9).to(dtype)
    align = case.options["align"]
    got = RAW.dispatch(x, index, rank, offset, align=align)
    want = reference.dispatch(x, index, rank, offset, align=align)
    assert torch.equal(got[0], want[0])
    assert got[0].dtype == dtype
    assert_same(got[1], want[1])


@on_devices
@pytest.mark.parametrize("align", [1, 8])
def test_rows_are_the_tokens_in_order(device: str, align: int) -> None:
    case = make_case(1, 500, [8, 9], 4, 0.6, "ties", align=align).to(device)
    index, _, rank, offset = route(case)
    x = case.normal(500, 24)
    rows, source = ops.dispatch(x, index, rank, offset, align=align)
    assert len(rows) % align == 0
    assert len(rows) >= 500 * 4
    owned = source >= 0
    assert torch.equal(rows[owned], x[source[owned].long() // 4])
    assert not rows[~owned].any()
    assert sorted(source[owned].tolist()) == (index.flatten() >= 0).nonzero()[:, 0].tolist()
    for e in range(case.experts):
        mine = source[offset[e] : offset[e + 1]]
        mine = mine[mine >= 0]
        assert (index.flatten()[mine.long()] == e).all()
        assert torch.equal(mine, mine.sort().values)  # in the order of the tokens
        assert len(mine) == (index == e).sum()
        assert offset[e] % align == 0


@on_devices
@QUICK
@given(case=cases(), width=widths)
def test_backward_matches_reference(device: str, case: Case, width: int) -> None:
    case.logits = case.logits.float() if device == "cuda" else case.logits
    case = case.to(device)
    index, _, rank, offset = route(case)
    source = RAW.dispatch(case.normal(len(index), 1), index, rank, offset, align=case.options["align"])[1]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        grad_rows = case.normal(len(source), width, dtype=dtype)
        grad_rows[source < 0] = torch.nan  # rows of nobody are not read
        for ok in (None, case.chance(0.7, len(source))):
            if ok is not None:
                grad_rows[~ok] = torch.nan
            got = RAW.dispatch_backward(grad_rows, index, rank, offset, ok=ok)
            want = reference.dispatch_backward(grad_rows, index, rank, offset, ok=ok)
            assert_near(got, want, TOLERANCE[dtype], size_of(grad_rows))


def test_gradcheck() -> None:
    index, _, rank, offset = route(make_case(2, 9, [3, 3], 3, 5, capacity=4))
    x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.dispatch(x, index, rank, offset)[0], (x,))


@on_devices
def test_gradients_are_those_of_the_public_function(device: str) -> None:
    index, _, rank, offset = route(make_case(3, 6, [4], 2).to(device))
    x = torch.randn(6, 3, device=device, requires_grad=True)
    rows, source = ops.dispatch(x, index, rank, offset)
    assert not source.requires_grad
    rows.sum().backward()
    assert x.grad is not None
    assert (x.grad == 2).all()


@on_devices
def test_tokens_of_any_shape_and_dtype(device: str) -> None:
    index, _, rank, offset = route(make_case(4, 10, [5], 2).to(device))
    x = torch.randn(10, 3, 2, 2, device=device).transpose(1, 2).requires_grad_()
    rows, source = ops.dispatch(x, index, rank, offset)
    assert torch.equal(rows, x[source.long() // 2])
    rows.sum().backward()
    mask = torch.rand(10, device=device) < 0.5
    assert torch.equal(ops.dispatch(mask, index, rank, offset)[0], mask[source.long() // 2])
    ids = torch.arange(10, device=device)
    assert torch.equal(ops.dispatch(ids, index, rank, offset)[0], source.long() // 2)
    complex_rows = torch.randn(10, 2, dtype=torch.complex64, device=device)
    assert torch.equal(ops.dispatch(complex_rows, index, rank, offset)[0], complex_rows[source.long() // 2])


@on_devices
def test_large_outputs_take_the_streaming_path(device: str) -> None:
    case = make_case(5, 300, [8, 8], 8, align=16).to(device)
    index, _, rank, offset = route(case)
    x = case.normal(300, 1024)  # more than 9 MiB of rows
    got = RAW.dispatch(x, index, rank, offset, align=16)
    want = reference.dispatch(x, index, rank, offset, align=16)
    assert_same(got[0], want[0])
    assert_same(got[1], want[1])


@on_devices
def test_a_plan_out_of_range_is_void(device: str) -> None:
    """Indices that route_grid cannot have made touch no memory outside."""
    index = torch.tensor([[0, 7], [-5, 1]], dtype=torch.int32, device=device)
    rank = torch.tensor([[0, 0], [0, 2**31 - 1]], dtype=torch.int32, device=device)
    offset = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
    rows, source = RAW.dispatch(torch.ones(2, 3, device=device), index, rank, offset)
    assert source.tolist() == [0, -1, -1, -1]
    assert rows.sum().item() == 3
    assert RAW.dispatch_backward(rows, index, rank, offset).sum().item() == 3


@on_devices
@pytest.mark.parametrize("align", [1, 4])
def test_opcheck(device: str, align: int) -> None:
    index, _, rank, offset = route(make_case(6, 11, [3, 4], 3, 5, align=align).to(device))
    x = torch.randn(11, 6, device=device)
    torch.library.opcheck(RAW.dispatch.default, (x, index, rank, offset), {"align": align})
    grad_rows = torch.randn(reference.rows_of(33, 12, align), 6, device=device)
    ok = torch.rand(len(grad_rows), device=device) < 0.5
    torch.library.opcheck(RAW.dispatch_backward.default, (grad_rows, index, rank, offset), {"ok": ok})


INDEX, _, RANK, OFFSET = route(make_case(7, 4, [3], 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.dispatch(1.0, INDEX, RANK, OFFSET), TypeError, "x: expected a tensor, got float"),
        (
            lambda: ops.dispatch(torch.ones(5, 2), INDEX, RANK, OFFSET),
            ValueError,
            r"x: .*\[4, ...\], got \[5, 2\]",
        ),
        (
            lambda: ops.dispatch(torch.ones(4), INDEX.long(), RANK, OFFSET),
            TypeError,
            "index: expected torch.int32",
        ),
        (lambda: ops.dispatch(torch.ones(4), INDEX, RANK[:2], OFFSET), ValueError, "rank: expected shape"),
        (lambda: ops.dispatch(torch.ones(4), INDEX, RANK, OFFSET[:1]), ValueError, "offset: expected"),
        (
            lambda: ops.dispatch(torch.ones(4), INDEX.t().contiguous().t(), RANK, OFFSET),
            ValueError,
            "contiguous",
        ),
        (lambda: ops.dispatch(torch.ones(4), INDEX, RANK, OFFSET, align=0), ValueError, "align: expected 1"),
        (
            lambda: ops.dispatch(torch.ones(4, dtype=torch.complex64).requires_grad_(), INDEX, RANK, OFFSET),
            TypeError,
            "x: expected a dtype without gradient",
        ),
        (
            lambda: RAW.dispatch(torch.ones(5, 2), INDEX, RANK, OFFSET),
            RuntimeError,
            "x has 5 tokens, index has 4",
        ),
        (
            lambda: RAW.dispatch_backward(torch.ones(8, 2).int(), INDEX, RANK, OFFSET),
            RuntimeError,
            "must be float32",
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
