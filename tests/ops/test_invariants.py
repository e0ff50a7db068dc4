"""What holds for every routing: a plan is a permutation in order, and moving rows loses nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from ops_cases import DEVICES, QUICK, TOLERANCE, Case, assert_near, cases, route
from torch import Tensor

from learning_at_home import ops

on_devices = pytest.mark.parametrize("device", DEVICES)
WIDTH = 5


def on(device: str, case: Case) -> Case:
    case.logits = case.logits.float() if device == "cuda" else case.logits
    return case.to(device)


def positions(index: Tensor, rank: Tensor, offset: Tensor) -> Tensor:
    """[T * k], -1 where an assignment has no row."""
    row = offset[index.clamp(min=0).long()] + rank
    return torch.where(rank >= 0, row, -1).flatten()


@on_devices
@QUICK
@given(case=cases())
def test_a_plan_is_a_permutation_in_the_order_of_tokens(device: str, case: Case) -> None:
    case = on(device, case)
    index, _, rank, offset = route(case)
    capacity, align = case.options["capacity"], case.options["align"]
    position = positions(index, rank, offset)
    owned = sorted(p for p in position.tolist() if p >= 0)
    assert len(set(owned)) == len(owned)
    starts = offset.tolist()
    if align == 1:
        assert owned == list(range(starts[-1]))
    next_row = starts.copy()
    kept = [0] * case.experts
    for e, row in zip(index.flatten().tolist(), position.tolist(), strict=True):
        full = e < 0 or (capacity > 0 and kept[e] == capacity)
        assert row == (-1 if full else next_row[e])  # in the order of the tokens
        if not full:
            next_row[e] += 1
            kept[e] += 1
    assert starts[0] == 0
    assert [end - start for start, end in pairwise(starts)] == [(n + align - 1) // align * align for n in kept]


@on_devices
@QUICK
@given(case=cases())
def test_rows_are_their_tokens(device: str, case: Case) -> None:
    case = on(device, case)
    index, _, rank, offset = route(case)
    x = case.normal(len(index), WIDTH)
    rows, source = ops.dispatch(x, index, rank, offset, align=case.options["align"])
    position = positions(index, rank, offset)
    owned = (position >= 0).nonzero()[:, 0]
    assert torch.equal(rows[position[owned].long()], x[owned // case.k])
    assert torch.equal(source[position[owned].long()].long(), owned)
    assert rows.any(1).sum() == len(owned)  # nothing else in any row


@on_devices
@QUICK
@given(case=cases())
def test_combine_undoes_dispatch(device: str, case: Case) -> None:
    """Weights of 1/k, or of any scores that are normalized: tokens come back as they were."""
    case = on(device, case)
    case.options.update(capacity=0)
    index, score, rank, offset = route(case)
    x = case.normal(len(index), WIDTH)
    rows, source = ops.dispatch(x, index, rank, offset, align=case.options["align"])
    rows[source < 0] = torch.nan
    number = (index >= 0).sum(1, keepdim=True)
    routed = (number > 0).to(x.dtype)
    equal = (1 / number.clamp(min=1)).to(x.dtype).expand(score.shape).contiguous()
    mixed, _ = ops.combine(rows, equal, index, rank, offset, normalize="none")
    assert_near(mixed, x * routed, TOLERANCE[torch.float32])
    for normalize in ("softmax", "sum"):
        mixed, _ = ops.combine(rows, score.float().clamp(-9, 9).abs() + 0.1, index, rank, offset, normalize=normalize)
        assert_near(mixed, x * routed, 4 * TOLERANCE[torch.float32])


@on_devices
@QUICK
@given(case=cases())
def test_nan_of_missing_rows_never_leaks(device: str, case: Case) -> None:
    """Forward and backward of a mixture in which calls failed are finite, and zero where all of a token's did."""
    case = on(device, case)
    case.logits = case.logits.nan_to_num(0.0, 1.0, -1.0).clamp(-1e3, 1e3).requires_grad_()
    options = {key: value for key, value in case.options.items() if key != "beam"}
    routed = ops.route_grid(case.logits, case.grid, case.k, **options)
    plan = (routed.index, routed.rank, routed.offset)
    x = case.normal(len(routed.index), WIDTH).requires_grad_()
    rows, source = ops.dispatch(x, *plan, align=case.options["align"])
    ok = case.chance(0.5, len(rows)) & (source >= 0)
    answered = torch.where(ok[:, None], 2 * rows, torch.nan)
    out, weight = ops.combine(answered, routed.score, *plan, ok=ok)
    out.square().sum().backward()
    position = positions(*plan).view(routed.index.shape)
    live = (position >= 0) & (ok[position.clamp(min=0).long()] if len(ok) else False)
    assert not out[~live.any(1)].any()
    assert not weight[~live].any()
    for leaf in (case.logits, x):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[~live.any(1)].any()
    assert out.isfinite().all()
