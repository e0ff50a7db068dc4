"""swiglu, forward and backward, weighted, beside the same in eager torch: R=16384 rows, F=1024, float32 and bfloat16.

How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from learning_at_home import ops

RAW = torch.ops.learning_at_home


def gated(rows: int, width: int, dtype: torch.dtype) -> dict[str, Pair]:
    """Forward reads two rows and writes one, backward reads three and writes two."""
    x, grad = torch.randn(rows, 2 * width).to(dtype), torch.randn(rows, width).to(dtype)
    weight = torch.rand(rows)
    row_bytes = float(rows * width * x.element_size())

    def eager() -> Tensor:
        gate, up = x.chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up * weight[:, None]

    def eager_backward() -> tuple[Tensor, Tensor]:
        gate, up = x.chunk(2, dim=1)
        sigmoid = gate.sigmoid()
        silu, scaled = gate * sigmoid, grad * weight[:, None]
        grad_gate = scaled * up * (sigmoid + silu * (1 - sigmoid))
        return torch.cat([grad_gate, scaled * silu], dim=1), (grad * silu * up).sum(1)

    name = str(dtype).removeprefix("torch.")
    return {
        f"swiglu, {name}": (lambda: ops.swiglu(x, weight), eager, 3 * row_bytes),
        f"swiglu backward, {name}": (lambda: RAW.swiglu_backward(grad, x, weight), eager_backward, 5 * row_bytes),
    }


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.swiglu")
    options = parse_options(__doc__)
    rows = 4096 if options.quick else 16384
    torch.manual_seed(0)
    pairs = gated(rows, 1024, torch.float32) | gated(rows, 1024, torch.bfloat16)
    beside_eager(f"swiglu, {rows} rows", pairs, options)


if __name__ == "__main__":
    main()
