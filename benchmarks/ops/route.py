"""route beside eager torch: 256 experts, 8 choices of 4096 tokens: softmax scores, and DeepSeek-V3's router (sigmoids,
a bias, the best 4 of 8 groups).

Eager is the router as torch has it: sigmoid, top-2 sums of the groups, a mask, top-k, a gather. All sides also lay out
the rows.
How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from benchmarks.ops.route_grid import eager_plan

RAW = torch.ops.learning_at_home
EXPERTS, CHOICES, GROUPS, TOP_GROUPS = 256, 8, 8, 4


def eager_softmax(logits: Tensor) -> tuple[Tensor, ...]:
    """Top-k of the logits."""
    best, index = logits.topk(CHOICES, dim=1)
    return best, index, *eager_plan(index, EXPERTS)


def eager_sigmoid(logits: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """As DeepSeek-V3's published inference code describes it: biased keys choose, unbiased sigmoids weigh."""
    score = logits.sigmoid()
    key = (score + bias).view(-1, GROUPS, EXPERTS // GROUPS)
    kept = key.topk(2, dim=2).values.sum(2).topk(TOP_GROUPS, dim=1).indices
    dead = torch.ones(len(logits), GROUPS, dtype=torch.bool, device=logits.device).scatter_(1, kept, False)
    index = key.masked_fill_(dead[:, :, None], -math.inf).flatten(1).topk(CHOICES, dim=1).indices
    return score.gather(1, index), index, *eager_plan(index, EXPERTS)


def pairs_of(tokens: int, device: str | torch.device = "cpu") -> dict[str, Pair]:
    """Both routers, on the same logits."""
    logits, bias = torch.randn(tokens, EXPERTS, device=device), 0.1 * torch.randn(EXPERTS, device=device)
    options = {"bias": bias, "score": 1, "groups": GROUPS, "top_groups": TOP_GROUPS}

    def softmax() -> tuple[Tensor, ...]:
        return RAW.route(logits, CHOICES)

    def sigmoid() -> tuple[Tensor, ...]:
        return RAW.route(logits, CHOICES, **options)

    torch.testing.assert_close(softmax()[1], eager_softmax(logits)[0])
    weights = [x.sort(dim=1).values for x in (sigmoid()[1], eager_sigmoid(logits, bias)[0])]
    assert (weights[0] - weights[1]).abs().gt(1e-6).float().mean() < 1e-3  # near keys may change places
    nbytes = 4.0 * tokens * (EXPERTS + 3 * CHOICES)  # logits; index, score and rank
    return {
        f"route, softmax, T={tokens}": Pair(softmax, lambda: eager_softmax(logits), nbytes),
        f"route, sigmoid, bias, {TOP_GROUPS} of {GROUPS} groups, T={tokens}": Pair(
            sigmoid, lambda: eager_sigmoid(logits, bias), nbytes
        ),
    }


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.route")
    options = parse_options(__doc__)
    torch.manual_seed(0)
    beside_eager("Choosing among 256 experts", pairs_of(512 if options.quick else 4096), options)


if __name__ == "__main__":
    main()
