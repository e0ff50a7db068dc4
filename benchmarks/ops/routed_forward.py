"""The forward path around the experts in one: route, dispatch and combine, T=4096, E=256, k=8, H=1024, float32.

Two threads. The experts themselves are left out on all sides.
How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from benchmarks.ops.combine import bag_combine, eager_combine
from benchmarks.ops.dispatch import eager_dispatch
from benchmarks.ops.route_grid import eager_plan
from learning_at_home import ops


def eager_forward(logits: Tensor, x: Tensor, k: int, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Top-k, a stable sort, a gather, and the way back by the inverse permutation."""
    best, index = logits.topk(k, dim=1)
    order, _ = eager_plan(index, logits.size(1))
    rows = eager_dispatch(x, order // k)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    return mix(rows, best, position.view(index.shape))


def our_forward(logits: Tensor, x: Tensor, k: int) -> Tensor:
    """The same on the ops."""
    route = ops.route(logits, k)
    plan = (route.index, route.rank, route.offset)
    rows, _ = ops.dispatch(x, *plan)
    return ops.combine(rows, route.score, *plan)[0]


def pair(tokens: int, experts: int, k: int, hidden: int) -> dict[str, Pair]:
    """Logits are read, (index, score, rank) written; a row is read and k written, k read and one written."""
    logits, x = torch.randn(tokens, experts), torch.randn(tokens, hidden)
    for mix in (eager_combine, bag_combine):
        torch.testing.assert_close(eager_forward(logits, x, k, mix), our_forward(logits, x, k))
    return {
        f"route, dispatch and combine, T={tokens} E={experts} k={k} H={hidden}": Pair(
            lambda: our_forward(logits, x, k),
            lambda: eager_forward(logits, x, k, eager_combine),
            4.0 * tokens * (experts + 3 * k + 2 * (1 + k) * hidden),
            {"with embedding_bag": lambda: eager_forward(logits, x, k, bag_combine)},
        )
    }


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.routed_forward")
    options = parse_options(__doc__)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    beside_eager("Forward around the experts", pair(1024 if options.quick else 4096, 256, 8, 1024), options)


if __name__ == "__main__":
    main()
