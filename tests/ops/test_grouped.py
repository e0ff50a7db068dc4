"""grouped_mm: each expert's matrix on its own rows, whatever they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops_cases import DEVICES, QUICK, RAW, TOLERANCE, assert_near, make_case, route
from torch import Tensor

from learning_at_home import ops

on_devices = pytest.mark.parametrize("device", DEVICES)


def inputs(
    seed: int, counts: list[int], unowned: int, shape: tuple[int, int], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(grad, rows, weight, offset); rows that nobody owns hold NaN."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.tensor([0, *counts]).cumsum(0).int()
    total, (hidden, width) = sum(counts), shape
    rows = torch.randn(total + unowned, hidden, generator=generator, dtype=torch.float64)
    grad = torch.randn(total + unowned, width, generator=generator, dtype=torch.float64)
    rows[total:], grad[total:] = torch.nan, torch.nan
    weight = torch.randn(len(counts), hidden, width, generator=generator, dtype=torch.float64)
    return grad.to(device, dtype), rows.to(device, dtype), weight.to(device, dtype), offset.to(device)


def owned_matrix(weight: Tensor, offset: Tensor) -> Tensor:
    """[R, H, N] in float64: each row's own matrix."""
    return weight.double().repeat_interleave(offset.diff().long(), dim=0)


@on_devices
@QUICK
@given(
    seed=st.integers(0, 2**31),
    counts=st.lists(st.sampled_from([0, 0, 1, 2, 17, 64]), min_size=1, max_size=6),
    unowned=st.sampled_from([0, 3]),
    shape=st.sampled_from([(1, 1), (3, 5), (7, 1), (16, 8), (33, 40)]),
)
def test_matches_a_product_for_each_row(
    device: str, seed: int, counts: list[int], unowned: int, shape: tuple[int, int]
) -> None:
    total = sum(counts)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        grad, rows, weight, offset = inputs(seed, counts, unowned, shape, dtype, device)
        matrix = owned_matrix(weight, offset)
        x, g = rows[:total].double(), grad[:total].double()
        want = torch.einsum("rh,rhn->rn", x, matrix)
        assert_near(RAW.grouped_mm(rows, weight, offset)[:total], want.to(dtype), 2 * TOLERANCE[dtype])
        grad_rows, grad_weight = RAW.grouped_mm_backward(grad, rows, weight, offset)
        want = torch.einsum("rn,rhn->rh", g, matrix)
        assert_near(grad_rows[:total], want.to(dtype), 2 * TOLERANCE[dtype])
        owner = torch.arange(len(counts), device=device).repeat_interleave(offset.diff().long())
        outer = torch.einsum("rh,rn->rhn", x, g)
        want = torch.zeros_like(weight, dtype=torch.float64).index_add_(0, owner, outer)
        assert_near(grad_weight, want.to(dtype), 2 * TOLERANCE[dtype])


def test_gradcheck() -> None:
    _, rows, weight, offset = inputs(1, [3, 0, 2], 0, (4, 3), torch.float64, "cpu")
    arguments = (rows.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda rows, weight: ops.grouped_mm(rows, weight, offset), arguments)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_without_strides_and_rows_of_any_width(device: str, dtype: torch.dtype) -> None:
    """torch's grouped product raises for expanded gradients, and for rows that are no multiple of 16 bytes.

    transformers#46743.
    """
    _, rows, weight, offset = inputs(2, [3, 2], 0, (5, 3), dtype, device)
    rows.requires_grad_()
    ops.grouped_mm(rows, weight, offset).sum().backward()  # its gradient has strides of 0
    want = owned_matrix(weight, offset).sum(2)
    assert_near(rows.grad, want.to(dtype), 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_expert_compiles_without_graph_breaks(dtype: torch.dtype) -> None:
    """torch's own grouped product cannot be traced in float32."""

    def expert(rows: Tensor, w_in: Tensor, w_out: Tensor, offset: Tensor) -> Tensor:
        return ops.grouped_mm(ops.swiglu(ops.grouped_mm(rows, w_in, offset)), w_out, offset)

    compiled = torch.compile(expert, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (6, 11):
        index, _, rank, offset = route(make_case(tokens, tokens, [4], 2))
        rows = ops.dispatch(torch.randn(tokens, 8, dtype=dtype), index, rank, offset)[0].requires_grad_()
        w_in, w_out = torch.randn(4, 8, 12, dtype=dtype), torch.randn(4, 6, 8, dtype=dtype)
        grads = []
        for function in (expert, compiled):
            out = function(rows, w_in, w_out, offset)
            grads.append([out.detach(), *torch.autograd.grad(out.square().sum(), rows)])
        for got, want in zip(*grads, strict=True):
            assert_near(got, want, TOLERANCE[dtype])


@on_devices
def test_opcheck(device: str) -> None:
    arguments = inputs(3, [3, 0, 4], 0, (6, 5), torch.float32, device)
    torch.library.opcheck(RAW.grouped_mm.default, arguments[1:])
    torch.library.opcheck(RAW.grouped_mm_backward.default, arguments)


ROWS, WEIGHT, OFFSET = torch.ones(4, 3), torch.ones(2, 3, 5), torch.tensor([0, 1, 4]).int()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.grouped_mm(1.0, WEIGHT, OFFSET), TypeError, "rows: expected a tensor, got float"),
        (lambda: ops.grouped_mm(ROWS, WEIGHT.double(), OFFSET), TypeError, "weight: expected torch.float32, got"),
        (lambda: ops.grouped_mm(ROWS, WEIGHT[:, :2], OFFSET), ValueError, r"weight: .*\[E, 3, N\], got \[2, 2, 5\]"),
        (lambda: ops.grouped_mm(ROWS, WEIGHT, OFFSET[1:]), ValueError, r"offset: expected shape \[3\], got \[2\]"),
        (lambda: ops.grouped_mm(ROWS, WEIGHT, OFFSET.long()), TypeError, "offset: expected torch.int32, got"),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
