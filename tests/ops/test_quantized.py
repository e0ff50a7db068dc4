"""dispatch_quantized and dequantize: the reference's bits, error bounds, nothing plausible from NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops_cases import DEVICES, QUICK, RAW, Case, assert_same, cases, make_case, route
from torch import Tensor

from learning_at_home import ops
from learning_at_home.ops import reference

FP8 = torch.float8_e4m3fn
PACKED = [torch.int8, FP8, torch.bfloat16]
LARGEST = {torch.int8: 127.0, FP8: 448.0}
LAYOUTS = [(torch.int8, 0), (torch.int8, 16), (torch.int8, 128), (FP8, 0), (FP8, 48), (FP8, 128), (torch.bfloat16, 0)]
on_devices = pytest.mark.parametrize("device", DEVICES)
in_layouts = pytest.mark.parametrize(("packed", "block"), LAYOUTS)
widths = st.sampled_from([0, 1, 15, 16, 17, 127, 128, 129, 1000])
flavours = st.sampled_from(["normal", "wide", "tiny", "huge", "zeros", "void"])


def floats(device: str) -> tuple[torch.dtype, ...]:
    """The dtypes that tokens may have."""
    return (torch.float32, torch.bfloat16, torch.float16) + (torch.float64,) * (device == "cpu")


def tokens(case: Case, flavour: str, width: int) -> Tensor:
    """float64 [T, width]. wide: every magnitude, also within a row. void: a few NaN and infinities."""
    count = len(case.logits)
    x = case.normal(count, width, dtype=torch.float64)
    if flavour == "wide":
        x = x * torch.exp2(64 * case.normal(count, 1, dtype=torch.float64)) * torch.exp2(4 * case.normal(count, width))
    elif flavour == "tiny":
        x = x * 2.0**-140  # subnormal in float32, and their scales would be
    elif flavour == "huge":
        x = x * 3e38
    elif flavour == "zeros":
        x = x * case.chance(0.1, count, 1) * case.chance(0.1, count, width)
    elif flavour == "void":
        for value in (math.nan, math.inf, -math.inf):
            x = x.masked_fill(case.chance(0.002, count, width), value)
    return x


def line_up(count: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """(index, rank, offset) of one expert, to which all of `count` tokens go, in their order."""
    index, _, rank, offset = route(make_case(0, count, [1], 1).to(device))
    return index, rank, offset


def nan_aside(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x with zeros for NaN, where it is NaN): NaN have many bit patterns."""
    return x.masked_fill(x.isnan(), 0.0), x.isnan()


@on_devices
@in_layouts
@QUICK
@given(case=cases(), width=widths, flavour=flavours)
def test_matches_reference(device: str, packed: torch.dtype, block: int, case: Case, width: int, flavour: str) -> None:
    case.logits = case.logits.float() if device == "cuda" else case.logits
    case = case.to(device)
    index, _, rank, offset = route(case)
    values = tokens(case, flavour, width)
    options = {"dtype": packed, "block": block, "align": case.options["align"]}
    for dtype in floats(device):
        x = values.to(dtype)
        got = RAW.dispatch_quantized(x, index, rank, offset, **options)
        want = reference.dispatch_quantized(x, index, rank, offset, **options)
        if packed == torch.bfloat16:
            for a, b in zip(nan_aside(got[0]), nan_aside(want[0]), strict=True):
                assert_same(a, b)
        else:
            assert_same(got[0], want[0])
        assert_same(got[1], want[1])
        assert_same(got[2], want[2])
        restored = RAW.dequantize(*got[:2], dtype=dtype, block=block)
        expected = reference.dequantize(*got[:2], dtype=dtype, block=block)
        for a, b in zip(nan_aside(restored), nan_aside(expected), strict=True):
            assert_same(a, b)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@in_layouts
def test_error_is_within_its_bound(device: str, dtype: torch.dtype, packed: torch.dtype, block: int) -> None:
    case = make_case(1, 300, [8, 9], 4, 0.6, align=4).to(device)
    index, _, rank, offset = route(case)
    x = case.normal(300, 200) * torch.exp2(4 * case.normal(300, 1)) * torch.exp2(2 * case.normal(300, 200))
    x = x.clamp(-6e4, 6e4).to(dtype)
    rows, scale, source = ops.dispatch_quantized(x, index, rank, offset, dtype=packed, block=block, align=4)
    owned = source >= 0
    assert 0 < owned.sum() < len(rows)
    restored = ops.dequantize(rows, scale, dtype=torch.float32, block=block)[owned]
    token = x[source[owned].long() // 4].float()
    error = (restored.double() - token.double()).abs()
    if packed == torch.bfloat16:
        assert (error <= 2.0**-8 * token.abs()).all()
        return
    of_element = scale[owned].view(len(token), -1).repeat_interleave(block or 200, dim=1)[:, :200].double()
    assert (scale[owned] > 0).all()
    # the product with an inverse, and that of dequantize, are rounded as well
    bound = of_element / 2 if packed == torch.int8 else torch.maximum(token.abs() / 16, of_element / 1024)
    assert (error <= bound.double() * (1 + 2.0**-14)).all()
    # the scale is no larger than it must be: the largest element of a block takes the largest code
    codes = rows[owned].float().abs()
    for begin in range(0, 200, block or 200):
        assert (codes[:, begin : begin + (block or 200)].amax(1) == LARGEST[packed]).all()


@on_devices
@in_layouts
def test_rows_of_nobody_are_zero_and_so_are_their_scales(device: str, packed: torch.dtype, block: int) -> None:
    case = make_case(2, 100, [5, 5], 3, 9, capacity=7, align=16).to(device)
    index, _, rank, offset = route(case)
    x = case.normal(100, 33)
    rows, scale, source = ops.dispatch_quantized(x, index, rank, offset, dtype=packed, block=block, align=16)
    assert (source >= 0).sum() == (rank >= 0).sum() < 300
    assert len(rows) == len(source) == reference.rows_of(300, 25, 16)
    nobody = source < 0
    assert not rows[nobody].float().any()
    assert packed == torch.bfloat16 or not scale[nobody].any()
    restored = ops.dequantize(rows, scale, dtype=torch.float32, block=block)
    assert not restored[nobody].any()
    assert restored[~nobody].any(1).all()


@on_devices
def test_all_dead_gives_zeros(device: str) -> None:
    index, _, rank, offset = route(make_case(3, 20, [4, 4], 2, 0).to(device))
    x = torch.full((20, 40), math.nan, device=device)
    for packed, block in LAYOUTS:
        rows, scale, source = ops.dispatch_quantized(x, index, rank, offset, dtype=packed, block=block)
        assert (source == -1).all()
        assert not rows.float().any()
        assert not scale.any()


@on_devices
@pytest.mark.parametrize("packed", [torch.int8, FP8])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_no_plausible_number_comes_from_nan_or_infinity(device: str, packed: torch.dtype, value: float) -> None:
    index, rank, offset = line_up(3, device)
    x = torch.randn(3, 100, device=device)
    x[1, 70] = value
    for dtype in floats(device):
        rows, scale, _ = ops.dispatch_quantized(x.to(dtype), index, rank, offset, dtype=packed, block=32)
        assert scale.isnan().tolist() == [[False] * 4, [False, False, True, False], [False] * 4]
        restored = ops.dequantize(rows, scale, dtype=dtype, block=32)
        assert restored[1, 64:96].isnan().all()
        assert restored[1, :64].isfinite().all()
        assert restored[[0, 2]].isfinite().all()
        rows, scale, _ = ops.dispatch_quantized(x.to(dtype), index, rank, offset, dtype=packed)
        assert ops.dequantize(rows, scale, dtype=dtype).isnan().all(1).tolist() == [False, True, False]


@on_devices
def test_bfloat16_is_a_rounded_copy(device: str) -> None:
    index, rank, offset = line_up(1, device)
    x = torch.tensor([[1 + 2.0**-8, 1 + 3 * 2.0**-8, -0.0, math.inf, -math.inf, 3.4e38]], device=device)
    rows, scale, _ = ops.dispatch_quantized(x, index, rank, offset, dtype=torch.bfloat16)
    assert_same(rows, x.bfloat16())
    assert scale.shape == (0,)
    x[0, 0] = math.nan
    rows, scale, _ = ops.dispatch_quantized(x, index, rank, offset, dtype=torch.bfloat16)
    assert ops.dequantize(rows, scale, dtype=torch.float32).isnan().tolist() == [[True] + [False] * 5]


@on_devices
def test_float8_rounds_as_torch_does(device: str) -> None:
    """All bfloat16 up to 448, ties and their neighbours, subnormals: scaled by exactly 1."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(FP8).float()
    codes = codes[codes.isfinite()].sort().values
    ties = (codes[1:] + codes[:-1]) / 2
    near = [ties.nextafter(torch.tensor(way)) for way in (1e9, -1e9)]
    generator = torch.Generator().manual_seed(4)
    anything = torch.randn(5000, generator=generator) * torch.exp2(4 * torch.randn(5000, generator=generator))
    x = torch.cat([every[every.abs() <= 448], codes, ties, *near, anything.clamp(-448, 448)])
    x = torch.nn.functional.pad(x, (0, -len(x) % 99)).view(-1, 99)
    x = torch.nn.functional.pad(x, (0, 1), value=-448.0).to(device)
    index, rank, offset = line_up(len(x), device)
    rows, scale, _ = ops.dispatch_quantized(x, index, rank, offset, dtype=FP8)
    assert (scale == 1).all()
    assert_same(rows, x.cpu().to(FP8))


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_code_reads_as_torch_reads_it(device: str, dtype: torch.dtype) -> None:
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is for the CPU")
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).repeat(3, 1).to(device)
    scale = torch.tensor([1.0, 0.3, 0.0], device=device)
    for packed in (torch.int8, FP8):
        got = ops.dequantize(codes.view(packed), scale, dtype=dtype)
        want = (codes.view(packed).float() * scale[:, None]).to(dtype)
        for a, b in zip(nan_aside(got), nan_aside(want), strict=True):
            assert_same(a, b)
        assert got.isnan().sum() == (0 if packed == torch.int8 else 6)


def test_ties_of_int8_go_to_the_even_code() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, -127.0]])
    index, rank, offset = line_up(1)
    rows, scale, _ = ops.dispatch_quantized(x, index, rank, offset, dtype=torch.int8)
    assert scale.tolist() == [1.0]
    assert rows.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, -126, -127]]


@in_layouts
def test_the_same_bits_for_any_number_of_threads(packed: torch.dtype, block: int) -> None:
    case = make_case(5, 700, [8, 8], 8, 0.9, align=16)
    index, _, rank, offset = route(case)
    x = case.normal(700, 1008)  # rows take more than 4 MiB: stored past the cache
    threads = torch.get_num_threads()
    first: list[Tensor] = []
    try:
        for i in range(20):
            torch.set_num_threads(1 + i % 3)
            rows, scale, source = RAW.dispatch_quantized(x, index, rank, offset, dtype=packed, block=block, align=16)
            results = [rows, scale, source, RAW.dequantize(rows, scale, dtype=torch.float32, block=block)]
            first = first or results
            for a, b in zip(first, results, strict=True):
                assert_same(a, b)
    finally:
        torch.set_num_threads(threads)
    want = reference.dispatch_quantized(x, index, rank, offset, dtype=packed, block=block, align=16)
    for a, b in zip(first, want, strict=False):
        assert_same(a, b)
    assert_same(first[3], reference.dequantize(want[0], want[1], dtype=torch.float32, block=block))


@on_devices
def test_strided_tokens_and_misaligned_rows(device: str) -> None:
    case = make_case(6, 60, [7], 2).to(device)
    index, _, rank, offset = route(case)
    x = case.normal(64, 60).t()[:, 3:35]
    got = ops.dispatch_quantized(x, index, rank, offset, dtype=torch.int8, block=16)
    want = reference.dispatch_quantized(x, index, rank, offset, dtype=torch.int8, block=16)
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)
    shifted = torch.empty(got[0].numel() + 1, dtype=torch.int8, device=device)[1:].view(got[0].shape).copy_(got[0])
    assert_same(
        ops.dequantize(shifted, got[1], dtype=torch.float32, block=16),
        reference.dequantize(*want[:2], dtype=torch.float32, block=16),
    )


@on_devices
def test_a_plan_out_of_range_is_void(device: str) -> None:
    """Indices that route_grid cannot have made touch no memory outside."""
    index = torch.tensor([[0, 7], [-5, 1]], dtype=torch.int32, device=device)
    rank = torch.tensor([[0, 0], [0, 2**31 - 1]], dtype=torch.int32, device=device)
    offset = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
    rows, scale, source = RAW.dispatch_quantized(torch.ones(2, 3, device=device), index, rank, offset, dtype=torch.int8)
    assert source.tolist() == [0, -1, -1, -1]
    assert rows.tolist() == [[127] * 3, [0] * 3, [0] * 3, [0] * 3]
    assert (scale > 0).tolist() == [True, False, False, False]


@on_devices
def test_no_gradient_is_lost_silently(device: str) -> None:
    index, rank, offset = line_up(4, device)
    x = torch.randn(4, 8, device=device, requires_grad=True)
    with pytest.raises(TypeError, match=r"x: expected a tensor that does not require grad.*detach it, or use dispatch"):
        ops.dispatch_quantized(x, index, rank, offset, dtype=torch.int8)
    with torch.no_grad():
        rows, scale, _ = ops.dispatch_quantized(x, index, rank, offset, dtype=torch.int8)
    for detached in (x.detach(), x.detach().clone()):
        assert_same(ops.dispatch_quantized(detached, index, rank, offset, dtype=torch.int8)[0], rows)
    scale.requires_grad_()
    with pytest.raises(TypeError, match=r"scale: expected a tensor that does not require grad.*detach it"):
        ops.dequantize(rows, scale, dtype=torch.float32)
    with torch.no_grad():
        assert not ops.dequantize(rows, scale, dtype=torch.float32).requires_grad


@pytest.mark.parametrize("packed", PACKED)
def test_compiles_without_graph_breaks(packed: torch.dtype) -> None:
    def there_and_back(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        index, _, rank, offset, *_ = ops.route_grid(logits, (3, 4), 2, align=8)
        block = 0 if packed == torch.bfloat16 else 16
        rows, scale, source = ops.dispatch_quantized(2 * x, index, rank, offset, dtype=packed, block=block, align=8)
        return ops.dequantize(rows, scale, dtype=x.dtype, block=block) + 1, source

    compiled = torch.compile(there_and_back, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, width in ((5, 20), (9, 33)):
        case = make_case(count, count, [3, 4], 2)
        x = case.normal(count, width)
        for got, want in zip(compiled(x, case.logits), there_and_back(x, case.logits), strict=True):
            assert_same(got, want)


@on_devices
@in_layouts
def test_opcheck(device: str, packed: torch.dtype, block: int) -> None:
    index, _, rank, offset = route(make_case(7, 11, [3, 4], 3, 5, align=4).to(device))
    x = torch.randn(11, 50, device=device)
    options = {"dtype": packed, "block": block, "align": 4}
    torch.library.opcheck(RAW.dispatch_quantized.default, (x, index, rank, offset), options)
    rows, scale, _ = RAW.dispatch_quantized(x, index, rank, offset, **options)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    if packed == FP8:  # torch's check of the schema compares arguments before and after, and cannot compare float8
        checks = checks[1:]
    before = rows.clone()
    for dtype in (torch.float32, torch.bfloat16):
        options = {"dtype": dtype, "block": block}
        torch.library.opcheck(RAW.dequantize.default, (rows, scale), options, test_utils=checks)
    assert_same(rows, before)
