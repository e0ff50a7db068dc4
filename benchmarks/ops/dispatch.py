"""dispatch and its backward beside eager torch, torch.compile and a copy: T=4096, k=8, H=1024, float32 and bfloat16.

How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from benchmarks.routed import Routed

RAW = torch.ops.learning_at_home


def eager_dispatch(x: Tensor, token: Tensor) -> Tensor:
    """One gather; `index_select` is the fastest of torch's (`x[token]` and `embedding` are its equals at best)."""
    return x.index_select(0, token)


def eager_dispatch_backward(grad_rows: Tensor, position: Tensor) -> Tensor:
    """A gather back to token order and a sum: faster than `index_add_`, and the same sum in every run."""
    return grad_rows.index_select(0, position.flatten()).view(*position.shape, -1).sum(1)


def bag_dispatch_backward(grad_rows: Tensor, position: Tensor) -> Tensor:
    """Gather and sum in one, by torch's op for bags of embeddings."""
    return torch.nn.functional.embedding_bag(position, grad_rows, mode="sum")


def pairs(case: Routed) -> dict[str, Pair]:
    """Forward reads a row and writes k for every token, backward reads k and writes one."""
    nbytes = (1 + case.index.size(1)) * case.row_bytes()
    want = RAW.dispatch(case.x, *case.plan)[0]
    torch.testing.assert_close(want, eager_dispatch(case.x, case.token), rtol=0, atol=0)
    return {
        f"dispatch, {case.name}": Pair(
            lambda: RAW.dispatch(case.x, *case.plan), lambda: eager_dispatch(case.x, case.token), nbytes
        ),
        f"dispatch_backward, {case.name}": Pair(
            lambda: RAW.dispatch_backward(case.rows, *case.plan),
            lambda: eager_dispatch_backward(case.rows, case.position),
            nbytes,
            {"embedding_bag": lambda: bag_dispatch_backward(case.rows, case.position)},
        ),
    }


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.dispatch")
    options = parse_options(__doc__)
    torch.manual_seed(0)
    all_pairs: dict[str, Pair] = {}
    for dtype in (torch.float32, torch.bfloat16):
        all_pairs |= pairs(Routed.make(1024 if options.quick else 4096, 256, 8, 1024, dtype))
    beside_eager("Tokens to the rows of their experts", all_pairs, options)


if __name__ == "__main__":
    main()
