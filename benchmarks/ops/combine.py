"""combine and its backward beside eager torch, torch.compile and a copy: T=4096, k=8, H=1024, float32 and bfloat16.

How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from benchmarks.routed import Routed

RAW = torch.ops.learning_at_home


def eager_combine(rows: Tensor, score: Tensor, position: Tensor) -> Tensor:
    """A gather back to token order and a batched product with the weights.

    It is half as long as multiplying and summing, or as `index_add_` of weighted rows.
    """
    weight = score.softmax(1).to(rows.dtype)
    return torch.bmm(weight[:, None], rows.index_select(0, position.flatten()).view(*position.shape, -1)).squeeze(1)


def bag_combine(rows: Tensor, score: Tensor, position: Tensor) -> Tensor:
    """Gather and weighted sum in one, by torch's op for bags of embeddings. Its own backward is far slower."""
    weight = score.softmax(1).to(rows.dtype)
    return torch.nn.functional.embedding_bag(position, rows, per_sample_weights=weight, mode="sum")


def eager_combine_backward(
    grad: Tensor, rows: Tensor, weight: Tensor, position: Tensor, token: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows, weighted in place, and of the scores: by the batched product of gathered rows.

    Dots of rows with gathered gradients, where they are, take as long: torch writes the products before it sums them.
    """
    dots = torch.bmm(rows.index_select(0, position.flatten()).view(*position.shape, -1), grad[:, :, None]).squeeze(2)
    row_weight = torch.empty(len(rows), dtype=rows.dtype, device=rows.device)
    row_weight[position] = weight.to(rows.dtype)
    grad_rows = grad.index_select(0, token).mul_(row_weight[:, None])
    return grad_rows, weight * (dots - (weight * dots).sum(1, keepdim=True))


def pairs(case: Routed) -> dict[str, Pair]:
    """Forward reads k rows and writes one for every token, backward reads one and k and writes k."""
    k, rows, score = case.index.size(1), case.rows, case.score
    backward = (case.grad, rows, case.weight, case.position, case.token)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if rows.dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    want, want_grads = RAW.combine(rows, score, *case.plan)[0], _backward(case)
    for peer in (eager_combine, bag_combine):
        torch.testing.assert_close(peer(rows, score, case.position), want, **tolerance)
    torch.testing.assert_close(eager_combine_backward(*backward)[0], want_grads[0], **tolerance)
    return {
        f"combine, {case.name}": Pair(
            lambda: RAW.combine(rows, score, *case.plan),
            lambda: eager_combine(rows, score, case.position),
            (1 + k) * case.row_bytes(),
            {"embedding_bag": lambda: bag_combine(rows, score, case.position)},
        ),
        f"combine_backward, {case.name}": Pair(
            lambda: _backward(case), lambda: eager_combine_backward(*backward), (1 + 2 * k) * case.row_bytes()
        ),
    }


def _backward(case: Routed) -> tuple[Tensor, Tensor]:
    return RAW.combine_backward(case.grad, case.rows, case.score, case.weight, *case.plan)


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.ops.combine")
    options = parse_options(__doc__)
    torch.manual_seed(0)
    all_pairs: dict[str, Pair] = {}
    for dtype in (torch.float32, torch.bfloat16):
        all_pairs |= pairs(Routed.make(1024 if options.quick else 4096, 256, 8, 1024, dtype))
    beside_eager("Rows of the experts, mixed", all_pairs, options)


if __name__ == "__main__":
    main()
