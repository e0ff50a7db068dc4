"""swiglu and its backward, weighted, beside eager torch, torch.compile and a copy: R=16384 rows, F=1024, float32 and
bfloat16.

How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from learning_at_home import ops

RAW = torch.ops.learning_at_home


def eager_swiglu(x: Tensor, weight: Tensor) -> Tensor:
    """As it is written everywhere; the last product is in place."""
    gate, up = x.chunk(2, dim=1)
    return (torch.nn.functional.silu(gate) * up).mul_(weight[:, None])


def eager_swiglu_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """With torch's own gradient of silu, as autograd would call it."""
    gate, up = x.chunk(2, dim=1)
    silu, scaled = torch.nn.functional.silu(gate), grad * weight[:, None].to(grad.dtype)
    grad_gate = torch.ops.aten.silu_backward(scaled * up, gate)
    return torch.cat([grad_gate, scaled * silu], dim=1), (grad * silu).mul_(up).sum(1)


def pairs(rows: int, width: int, dtype: torch.dtype, device: str | torch.device = "cpu") -> dict[str, Pair]:
    """Forward reads two rows and writes one, backward reads three and writes two."""
    x, grad = (torch.randn(rows, n * width, device=device).to(dtype) for n in (2, 1))
    weight = torch.rand(rows, device=device)
    row_bytes = float(rows * width * x.element_size())
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    want = RAW.swiglu_backward(grad, x, weight)[0]
    torch.testing.assert_close(eager_swiglu(x, weight), ops.swiglu(x, weight), **tolerance)
    torch.testing.assert_close(eager_swiglu_backward(grad, x, weight)[0], want, **tolerance)
    name = f"R={rows} F={width} {str(dtype).removeprefix('torch.')}"
    return {
        f"swiglu, {name}": Pair(lambda: ops.swiglu(x, weight), lambda: eager_swiglu(x, weight), 3 * row_bytes),
        f"swiglu_backward, {name}": Pair(
            lambda: RAW.swiglu_backward(grad, x, weight), lambda: eager_swiglu_backward(grad, x, weight), 5 * row_bytes
        ),
    }


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.swiglu")
    options = parse_options(__doc__)
    rows = 4096 if options.quick else 16384
    torch.manual_seed(0)
    both = pairs(rows, 1024, torch.float32) | pairs(rows, 1024, torch.bfloat16)
    beside_eager("The activation of an expert", both, options)


if __name__ == "__main__":
    main()
