"""swiglu: values and gradients near the reference, the same bits whatever the threads, extreme inputs, clear errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops_cases import DEVICES, QUICK, RAW, TOLERANCE, assert_near, assert_same
from torch import Tensor

from learning_at_home import ops
from learning_at_home.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)


def inputs(
    seed: int, rows: int, width: int, dtype: torch.dtype, device: str, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad, x, weight)"""
    generator = torch.Generator().manual_seed(seed)
    sums = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    grad, x, weight = normal(rows, width), spread * normal(rows, 2 * width), normal(rows)
    return grad.to(device, dtype), x.to(device, dtype), weight.to(device, sums)


@on_devices
@QUICK
@given(
    seed=st.integers(0, 2**31),
    rows=st.sampled_from([0, 1, 2, 65, 130]),
    width=st.sampled_from([0, 1, 3, 16, 63, 64, 100, 257]),
    spread=st.sampled_from([1e-3, 1.0, 30.0]),
    weighted=st.booleans(),
)
def test_matches_reference(device: str, seed: int, rows: int, width: int, spread: float, weighted: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16) + (torch.float64,) * (device == "cpu"):
        grad, x, weight = inputs(seed, rows, width, dtype, device, spread)
        factor = weight if weighted else None
        assert_near(RAW.swiglu(x, factor), reference.swiglu(x, factor), TOLERANCE[dtype])
        got, want = RAW.swiglu_backward(grad, x, factor), reference.swiglu_backward(grad, x, factor)
        assert_near(got[0], want[0], TOLERANCE[dtype])
        # the sum of a row may cancel: its size is that of its terms
        terms = reference.swiglu_backward(grad.abs(), x.abs(), factor)[1]
        assert_near(got[1], want[1], TOLERANCE[weight.dtype], terms.double().norm().item())


def test_gradcheck() -> None:
    _, x, weight = inputs(1, 5, 7, torch.float64, "cpu")
    x.requires_grad_()
    assert torch.autograd.gradcheck(ops.swiglu, (x,))
    assert torch.autograd.gradcheck(ops.swiglu, (x, weight.requires_grad_()))


@on_devices
def test_only_the_gradients_that_are_asked_for(device: str) -> None:
    _, x, weight = inputs(2, 4, 3, torch.float32, device)
    ops.swiglu(x, weight.requires_grad_()).sum().backward()
    assert x.grad is None
    assert_near(weight.grad, reference.swiglu(x).sum(1), 1e-5)


@on_devices
def test_large_gates_saturate_and_nan_stays_in_its_row(device: str) -> None:
    gate = torch.tensor([[1e4, -1e4, 3e38, -3e38, 0.0, -0.0]], device=device)
    out = ops.swiglu(torch.cat([gate, torch.ones_like(gate)], dim=1))
    assert torch.equal(out, gate.clamp(min=0) + 0.0)
    x = torch.randn(3, 8, device=device)
    x[1] = math.nan
    grad_x, grad_weight = RAW.swiglu_backward(torch.ones(3, 4, device=device), x, torch.ones(3, device=device))
    for result in (ops.swiglu(x), grad_x, grad_weight[:, None]):
        assert result.isnan().all(1).tolist() == [False, True, False]
        assert result[[0, 2]].isfinite().all()


def test_the_same_bits_for_any_number_of_threads_and_streaming_stores() -> None:
    grad, x, weight = inputs(3, 1500, 1000, torch.float32, "cpu")  # beyond a cache: stored past it
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 2, 3):
            torch.set_num_threads(number)
            results.append([RAW.swiglu(x, weight), *RAW.swiglu_backward(grad, x, weight)])
    finally:
        torch.set_num_threads(threads)
    assert_near(results[0][0], reference.swiglu(x, weight), 1e-6)
    assert_near(results[0][1], reference.swiglu_backward(grad, x, weight)[0], 1e-6)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same(a, b)
    few = RAW.swiglu(x[:7], weight[:7])  # stays in the cache
    assert_same(few, results[0][0][:7])


def test_compiles_without_graph_breaks() -> None:
    def body(x: Tensor, weight: Tensor) -> Tensor:
        return ops.swiglu(2 * x, weight).square()

    compiled = torch.compile(body, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9):
        _, x, weight = inputs(rows, rows, 6, torch.float32, "cpu")
        x.requires_grad_()
        want, got = (torch.autograd.grad(f(x, weight).sum(), x)[0] for f in (body, compiled))
        assert_near(got, want, 1e-6)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    grad, x, weight = inputs(4, 11, 6, dtype, device)
    for factor in (weight, None):
        torch.library.opcheck(RAW.swiglu.default, (x, factor))
        torch.library.opcheck(RAW.swiglu_backward.default, (grad, x, factor))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.swiglu(None), TypeError, "x: expected a tensor, got NoneType"),
        (lambda: ops.swiglu(torch.ones(2, 4).long()), TypeError, "x: expected torch.float32 or .*, got torch.int64"),
        (lambda: ops.swiglu(torch.ones(4)), ValueError, r"x: expected shape \[R, 2 \* F\], got \[4\]"),
        (lambda: ops.swiglu(torch.ones(2, 3)), ValueError, r"x: expected an even number of columns.*got \[2, 3\]"),
        (lambda: ops.swiglu(torch.ones(2, 4), torch.ones(3)), ValueError, r"weight: expected shape \[2\], got \[3\]"),
        (lambda: RAW.swiglu(torch.ones(2, 3)), RuntimeError, "swiglu: size 1 of x must be even"),
        (
            lambda: RAW.swiglu_backward(torch.ones(2, 3), torch.ones(2, 4)),
            RuntimeError,
            "swiglu_backward: size 1 of grad must be 2, is 3",
        ),
        (
            lambda: RAW.swiglu(torch.ones(2, 4), torch.ones(2).double()),
            RuntimeError,
            "swiglu: weight must be Float, is Double",
        ),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
