"""The ops of a mixture on the CPU beside the same work in eager torch: T=4096, k=8, H=1024, float32.

How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from learning_at_home import ops
from learning_at_home.ops.reference import unpack_alive

RAW = torch.ops.learning_at_home


def routing(tokens: int, grid: Sequence[int], k: int, share_alive: float) -> Pair:
    """Choosing and planning. Eager: dense masked scores, topk, a stable sort and a count."""
    logits, experts = torch.randn(tokens, sum(grid)), math.prod(grid)
    mask = torch.rand(experts) < share_alive
    alive = ops.alive_bitmap(mask, experts)
    assert torch.equal(unpack_alive(alive, experts), mask)

    def eager() -> object:
        score = (logits[:, : grid[0], None] + logits[:, None, grid[0] :]).flatten(1).masked_fill_(~mask, -math.inf)
        best, index = score.topk(k, dim=1)
        order = index.flatten().argsort(stable=True)
        return best, order, torch.bincount(index.flatten(), minlength=experts).cumsum(0)

    return lambda: RAW.route_grid(logits, list(grid), k, alive=alive), eager, None


def movement(tokens: int, k: int, hidden: int) -> dict[str, Pair]:
    """Dispatch, combine and combine's backward of one routing."""
    x, grad = torch.randn(tokens, hidden), torch.randn(tokens, hidden)
    index, score, rank, offset, _, _ = ops.route_grid(torch.randn(tokens, 32), (16, 16), k)
    rows, source = ops.dispatch(x, index, rank, offset)
    weight = ops.combine(rows, score, index, rank, offset)[1]
    position = offset[index.long()].long() + rank
    token = source.long() // k
    plan = (index, rank, offset)

    def combine() -> Tensor:
        return torch.einsum("tk,tkh->th", score.softmax(1), rows[position])

    def combine_backward() -> tuple[Tensor, Tensor]:
        dots = torch.einsum("th,tkh->tk", grad, rows[position])
        grad_rows = (weight[:, :, None] * grad[:, None]).flatten(0, 1).index_select(0, source.long())
        return grad_rows, weight * (dots - (weight * dots).sum(1, keepdim=True))

    row_bytes = 4.0 * tokens * hidden
    return {
        "dispatch": (lambda: RAW.dispatch(x, *plan), lambda: x.index_select(0, token), row_bytes * (1 + k)),
        "combine": (lambda: RAW.combine(rows, score, *plan), combine, row_bytes * (1 + k)),
        "combine backward": (
            lambda: RAW.combine_backward(grad, rows, score, weight, *plan),
            combine_backward,
            row_bytes * (1 + 2 * k),
        ),
    }


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.mixture")
    options = parse_options(__doc__)
    tokens = 1024 if options.quick else 4096
    torch.manual_seed(0)
    pairs = {
        "route_grid 16x16, k=8": routing(tokens, (16, 16), 8, 1.0),
        "route_grid 32x32, k=4, 90 % alive": routing(tokens, (32, 32), 4, 0.9),
        **movement(tokens, 8, 1024),
    }
    beside_eager(f"Ops around the experts, {tokens} tokens", pairs, options)


if __name__ == "__main__":
    main()
