"""route_grid beside eager torch: grids of 1024, 4096 and 65,536 experts of which 90, 50 and 10 % are alive.

Eager scores every expert of the grid, the dead as -inf, and takes torch's top-k; "eager over the living" first gathers
the logits of the experts alive, whose ids it is given. All sides also lay out the rows. The largest grid has 1024
tokens, not 4096: eager's scores take 256 MB as it is.
How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from learning_at_home import ops

RAW = torch.ops.learning_at_home
CASES = ((32, 0.9, 4096, 4), (64, 0.5, 2048, 8), (256, 0.1, 1024, 4))  # side, share alive, tokens, choices


def eager_plan(index: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """The order of rows, and where each expert's begin."""
    ordered, order = index.flatten().sort(stable=True)
    return order, torch.searchsorted(ordered, torch.arange(experts + 1, device=index.device))


def eager_route(logits: Tensor, penalty: Tensor, k: int) -> tuple[Tensor, ...]:
    """Masked scores of all [n, m] experts, in one buffer. penalty: 0, or -inf where dead; saves the pass of a mask."""
    n, m = penalty.shape
    score = logits[:, :n, None] + penalty
    score += logits[:, None, n:]
    best, index = score.flatten(1).topk(k, dim=1)
    return best, index, *eager_plan(index, n * m)


def eager_route_living(logits: Tensor, ids: Tensor, sides: tuple[int, int], k: int) -> tuple[Tensor, ...]:
    """Scores of the experts alive only; ids: theirs."""
    n, m = sides
    score = logits.index_select(1, ids // m)
    score += logits.index_select(1, n + ids % m)
    best, at = score.topk(k, dim=1)
    index = ids[at]
    return best, index, *eager_plan(index, n * m)


def pair(side: int, share: float, tokens: int, k: int, device: str | torch.device = "cpu") -> dict[str, Pair]:
    """A square grid, a random part of it dead."""
    logits = torch.randn(tokens, 2 * side, device=device)
    mask = torch.rand(side, side, device=device) < share
    penalty = torch.zeros(side, side, device=device).masked_fill(~mask, -math.inf)
    ids = mask.flatten().nonzero().flatten()
    alive = ops.alive_bitmap(mask, side * side)

    def ours() -> tuple[Tensor, ...]:
        return RAW.route_grid(logits, [side, side], k, alive=alive)

    def living() -> tuple[Tensor, ...]:
        return eager_route_living(logits, ids, (side, side), k)

    for peer in (eager_route(logits, penalty, k), living()):
        torch.testing.assert_close(peer[0], ours()[1])
        torch.testing.assert_close(peer[3].int(), ours()[3], rtol=0, atol=8)  # torch's topk breaks ties as it likes
    name = f"route_grid {side}x{side}, {share:.0%} alive, T={tokens} k={k}"
    return {name: Pair(ours, lambda: eager_route(logits, penalty, k), None, {"eager over the living": living})}


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.route_grid")
    options = parse_options(__doc__)
    torch.manual_seed(0)
    pairs: dict[str, Pair] = {}
    for side, share, tokens, k in CASES:
        pairs |= pair(side, share, tokens // 8 if options.quick else tokens, k)
    beside_eager("Choosing experts of a grid", pairs, options)


if __name__ == "__main__":
    main()
