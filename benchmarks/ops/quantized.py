"""Dispatch in 8 bits and back beside the same in eager torch: T=4096, k=8, H=1024, float32 and bfloat16 tokens.

Eager quantizes (absmax, divide, round, cast) the rows, after index_select, as a layer does that dispatches floats; or
the tokens before it, which is less work. How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from learning_at_home import ops
from learning_at_home.ops.reference import LARGEST

RAW = torch.ops.learning_at_home


def quantized(tokens: int, k: int, hidden: int, dtype: torch.dtype, packed: torch.dtype, block: int) -> dict[str, Pair]:
    """There: a token is read, k rows of codes are written. Back: codes are read, floats are written."""
    x = torch.randn(tokens, hidden).to(dtype)
    index, _, rank, offset, *_ = ops.route_grid(torch.randn(tokens, 32), (16, 16), k)
    rows, scale, source = ops.dispatch_quantized(x, index, rank, offset, dtype=packed, block=block)
    token = source.long() // k
    width = block or hidden

    def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
        blocks = values.view(len(values), -1, width)
        of_block = blocks.abs().amax(2, keepdim=True).float() / LARGEST[packed]
        scaled = blocks / of_block
        codes = scaled.round().to(packed) if packed == torch.int8 else scaled.to(packed)
        return codes.view(torch.int8).view(len(values), hidden), of_block.flatten(1)

    def rows_quantized() -> tuple[Tensor, Tensor]:
        return quantize(x.index_select(0, token))

    def tokens_quantized() -> tuple[Tensor, Tensor]:
        codes, of_block = quantize(x)
        return codes.index_select(0, token), of_block.index_select(0, token)

    def eager_back() -> Tensor:
        values = rows.view(len(rows), -1, width).float() * scale.view(len(rows), -1, 1)
        return values.view(len(rows), hidden).to(dtype)

    elements = float(tokens * hidden)
    name = ", ".join([str(dtype), f"{packed} {f'in blocks of {block}' if block else 'rows'}"]).replace("torch.", "")
    there = elements * (x.element_size() + k) + 4.0 * scale.numel()
    back = elements * k * (1 + x.element_size()) + 4.0 * scale.numel()

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        return RAW.dispatch_quantized(x, index, rank, offset, dtype=packed, block=block)

    return {
        f"dispatch_quantized, {name}": (ours, rows_quantized, there),
        f"dispatch_quantized, {name}; eager: tokens first": (ours, tokens_quantized, there),
        f"dequantize, {name}": (lambda: RAW.dequantize(rows, scale, dtype=dtype, block=block), eager_back, back),
    }


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.quantized")
    options = parse_options(__doc__)
    tokens = 1024 if options.quick else 4096
    torch.manual_seed(0)
    pairs = {
        **quantized(tokens, 8, 1024, torch.float32, torch.int8, 0),
        **quantized(tokens, 8, 1024, torch.bfloat16, torch.float8_e4m3fn, 128),
    }
    beside_eager(f"dispatch_quantized and back, {tokens} tokens", pairs, options)


if __name__ == "__main__":
    main()
