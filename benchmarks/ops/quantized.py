"""dispatch_quantized and dequantize beside eager torch, torch.compile and a copy: T=4096, k=8, H=1024, float32 to int8
by the row, and bfloat16 to float8 by blocks of 128.

Eager gathers the rows and quantizes them, as a layer does whose dispatch moves floats. "tokens first" quantizes the
tokens and gathers codes and scales: less work, where nothing comes between. How it is measured: see
`benchmarks/eager.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from benchmarks.routed import Routed
from learning_at_home.ops.reference import LARGEST

RAW = torch.ops.learning_at_home
CASES = ((torch.float32, torch.int8, 0), (torch.bfloat16, torch.float8_e4m3fn, 128))


def eager_quantize(x: Tensor, packed: torch.dtype, width: int) -> tuple[Tensor, Tensor]:
    """Absmax, divide, round, cast: (codes, scale), `width` elements a scale."""
    blocks = x.view(len(x), -1, width).float()
    scale = blocks.abs().amax(2, keepdim=True) / LARGEST[packed]
    scaled = blocks / scale
    codes = (scaled.round_() if packed == torch.int8 else scaled).to(packed)
    return codes.view(x.shape), scale.flatten(1)


def eager_dequantize(rows: Tensor, scale: Tensor, dtype: torch.dtype, width: int) -> Tensor:
    """One product; in place where torch makes the floats anew."""
    blocks = rows.view(len(rows), -1, width).float().mul_(scale.view(len(rows), -1, 1))
    return blocks.view(rows.shape).to(dtype)


def tokens_first(x: Tensor, token: Tensor, packed: torch.dtype, width: int) -> tuple[Tensor, Tensor]:
    """The codes of a token are gathered as integers: torch cannot gather every dtype on every device."""
    codes, scale = eager_quantize(x, packed, width)
    return codes.view(torch.int8).index_select(0, token).view(packed), scale.index_select(0, token)


def pairs(case: Routed, packed: torch.dtype, block: int) -> dict[str, Pair]:
    """There, a token is read and k rows of codes are written; back, codes are read and floats are written."""
    x, dtype = case.x, case.x.dtype
    width = block or x.size(1)
    rows, scale, _ = RAW.dispatch_quantized(x, *case.plan, dtype=packed, block=block)
    for codes, of_block in (eager_quantize(x[case.token], packed, width), tokens_first(x, case.token, packed, width)):
        got = RAW.dequantize(rows, scale, dtype=dtype, block=block).float()
        want = eager_dequantize(codes, of_block, dtype, width).float()
        assert (got - want).norm() <= 1e-2 * want.norm()  # a division and a product with an inverse round differently
    there = case.row_bytes() + rows.numel() + 4.0 * scale.numel()
    back = rows.numel() * (1.0 + x.element_size()) + 4.0 * scale.numel()
    name = f"{case.name} {str(packed).removeprefix('torch.')}{f' block={block}' if block else ''}"
    return {
        f"dispatch_quantized, {name}": Pair(
            lambda: RAW.dispatch_quantized(x, *case.plan, dtype=packed, block=block),
            lambda: eager_quantize(x.index_select(0, case.token), packed, width),
            there,
            {"tokens first": lambda: tokens_first(x, case.token, packed, width)},
        ),
        f"dequantize, {name}": Pair(
            lambda: RAW.dequantize(rows, scale, dtype=dtype, block=block),
            lambda: eager_dequantize(rows, scale, dtype, width),
            back,
        ),
    }


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.quantized")
    options = parse_options(__doc__)
    torch.manual_seed(0)
    all_pairs: dict[str, Pair] = {}
    for dtype, packed, block in CASES:
        all_pairs |= pairs(Routed.make(1024 if options.quick else 4096, 256, 8, 1024, dtype), packed, block)
    beside_eager("Tokens to the rows of their experts in 8 bits, and back", all_pairs, options)


if __name__ == "__main__":
    main()
