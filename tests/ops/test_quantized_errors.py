"""What dispatch_quantized and dequantize say of arguments that do not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops_cases import RAW, make_case, route

from learning_at_home import ops

INDEX, _, RANK, OFFSET = route(make_case(8, 4, [3], 2))
X = torch.ones(4, 40)
ROWS, SCALE = torch.ones(8, 40, dtype=torch.int8), torch.ones(8)
PLAN = (INDEX, RANK, OFFSET)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.dispatch_quantized(1.0, *PLAN, dtype=torch.int8), TypeError, "x: expected a tensor, got float"),
        (
            lambda: ops.dispatch_quantized(X.int(), *PLAN, dtype=torch.int8),
            TypeError,
            "x: expected torch.float32 or .*, got torch.int32",
        ),
        (
            lambda: ops.dispatch_quantized(X[:3], *PLAN, dtype=torch.int8),
            ValueError,
            r"x: expected shape \[4, H\], got \[3, 40\]",
        ),
        (
            lambda: ops.dispatch_quantized(X, *PLAN, dtype=torch.float16),
            TypeError,
            "dtype: expected torch.int8 or torch.float8_e4m3fn or torch.bfloat16, got torch.float16",
        ),
        (
            lambda: ops.dispatch_quantized(X, *PLAN, dtype=torch.int8, block=20),
            ValueError,
            "block: expected 0 or a multiple of 16, got 20",
        ),
        (
            lambda: ops.dispatch_quantized(X, *PLAN, dtype=torch.bfloat16, block=16),
            ValueError,
            "block: expected 0 with torch.bfloat16.*got 16",
        ),
        (lambda: ops.dispatch_quantized(X, *PLAN, dtype=torch.int8, align=0), ValueError, "align: expected 1"),
        (
            lambda: ops.dispatch_quantized(X, INDEX, RANK[:2], OFFSET, dtype=torch.int8),
            ValueError,
            "rank: expected shape",
        ),
        (lambda: ops.dequantize(ROWS.int(), SCALE, dtype=torch.float32), TypeError, "rows: expected torch.int8"),
        (
            lambda: ops.dequantize(ROWS, SCALE.half(), dtype=torch.float32),
            TypeError,
            "scale: expected torch.float32, got torch.float16",
        ),
        (
            lambda: ops.dequantize(ROWS, SCALE, dtype=torch.float32, block=16),
            ValueError,
            r"scale: expected shape \[8, 3\], got \[8\]",
        ),
        (
            lambda: ops.dequantize(ROWS.bfloat16(), SCALE, dtype=torch.float32),
            ValueError,
            r"scale: expected shape \[0\], got \[8\]",
        ),
        (lambda: ops.dequantize(ROWS, SCALE, dtype=torch.int32), TypeError, "dtype: expected torch.float32 or"),
        (lambda: ops.dequantize(ROWS, SCALE, dtype=torch.float32, block=-16), ValueError, "block: expected 0 or"),
        (
            lambda: RAW.dispatch_quantized(X, *PLAN, dtype=torch.float8_e5m2),
            RuntimeError,
            "dispatch_quantized: dtype must be int8, float8_e4m3fn or bfloat16, is Float8_e5m2",
        ),
        (
            lambda: RAW.dispatch_quantized(X, *PLAN, dtype=torch.int8, block=8),
            RuntimeError,
            "dispatch_quantized: block must be 0 or a multiple of 16, is 8",
        ),
        (
            lambda: RAW.dispatch_quantized(X[:3], *PLAN, dtype=torch.int8),
            RuntimeError,
            "dispatch_quantized: x has 3 tokens, index has 4",
        ),
        (
            lambda: RAW.dequantize(ROWS, torch.ones(8, 2), dtype=torch.float32, block=16),
            RuntimeError,
            "dequantize: size 1 of scale must be 3, is 2",
        ),
        (
            lambda: RAW.dequantize(ROWS, SCALE, dtype=torch.int64),
            RuntimeError,
            "dequantize: dtype must be float32, bfloat16, float16 or float64, is Long",
        ),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
