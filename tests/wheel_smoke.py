"""What an installed wheel must do. Run by ``./run check`` in an environment without the sources."""

import sys
from pathlib import Path

import torch

import learning_at_home
from learning_at_home import ops
from learning_at_home.ops.library import has_kernel


def main() -> None:
    where = Path(learning_at_home.__file__)
    assert where.is_relative_to(sys.prefix), f"imported {where}, not the wheel"
    assert has_kernel("combine", "CPU"), "the compiled ops did not load"

    x = torch.randn(8, 4, requires_grad=True)
    index, score, rank, offset, *_ = ops.route_grid(torch.randn(8, 6), [3, 3], 2)
    rows, _ = ops.dispatch(x, index, rank, offset)
    out, _ = ops.combine(rows, score, index, rank, offset)
    torch.testing.assert_close(out, x)  # experts that return their input: weights of a token sum to one
    out.sum().backward()
    assert x.grad is not None

    with learning_at_home.TesseractNetwork(port=0) as network:
        assert network.port > 0
    print(f"ok: {where.parent}")


if __name__ == "__main__":
    main()
