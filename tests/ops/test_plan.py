"""plan: the same ranks and offsets that route_grid gives its own choices, for choices from elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from ops_cases import DEVICES, QUICK, RAW, Case, assert_same, cases, route

from learning_at_home import ops
from learning_at_home.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)


@on_devices
@QUICK
@given(case=cases())
def test_is_that_of_route_grid(device: str, case: Case) -> None:
    case.logits = case.logits.float()
    case = case.to(device)
    index, _, rank, offset = route(case)
    layout = {name: case.options[name] for name in ("capacity", "align")}
    planned = ops.plan(index, case.experts, **layout)
    assert_same(planned.rank, rank)
    assert_same(planned.offset, offset)
    for got, want in zip(planned, reference.plan(index, case.experts, **layout), strict=True):
        assert_same(got, want)


@on_devices
def test_ids_out_of_range_are_void(device: str) -> None:
    index = torch.tensor([[1, 2], [-7, 0], [2**31 - 1, 1], [-(2**31), -1]], dtype=torch.int32, device=device)
    for plan in (ops.plan(index, 2), reference.plan(index, 2)):
        assert plan[0].tolist() == [[0, -1], [-1, 0], [-1, 1], [-1, -1]]
        assert plan[1].tolist() == [0, 1, 3]
        assert plan[2].tolist() == [1, 2]


@on_devices
def test_opcheck(device: str) -> None:
    index = torch.tensor([[1, 2, 0], [2, 0, 1]], dtype=torch.int32, device=device)
    torch.library.opcheck(RAW.plan.default, (index, 3), {"capacity": 1, "align": 4})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.plan(torch.ones(2, 2), 4), TypeError, "index: expected torch.int32, got torch.float32"),
        (lambda: ops.plan(torch.ones(2).int(), 4), ValueError, r"index: expected shape \[T, k\], got \[2\]"),
        (lambda: ops.plan(torch.ones(2, 2).int(), 0), ValueError, "num_experts: expected 1 to 65536, got 0"),
        (lambda: ops.plan(torch.ones(2, 2).int(), 4, capacity=-1), ValueError, "capacity: expected 0 or more"),
        (lambda: ops.plan(torch.ones(2, 2).int(), 4, align=0), ValueError, "align: expected 1 or more"),
        (lambda: RAW.plan(torch.ones(2, 2).int(), 4, align=2**31), RuntimeError, "rows"),
        (lambda: RAW.plan(torch.ones(2, 2), 4), RuntimeError, "index must be Int"),
        (lambda: RAW.plan(torch.ones(2, 2).int(), 0), RuntimeError, "experts must be 1 to"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
