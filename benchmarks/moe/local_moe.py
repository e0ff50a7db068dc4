"""A local mixture layer, forward and backward, beside the same module in eager torch: T=4096, E=64, H=F=512, float32.

Eager is written as such layers are today: top-k and softmax, a stable sort, a gather, a loop over experts, a
scatter-add. torch.compile (with --full only: it compiles for minutes) breaks its graph where the loop reads the numbers
of rows. "Products alone" is the layer's matrix products on rows that are there: what no layer can go below.
How it is measured: see `benchmarks/eager.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import parse_options
from benchmarks.eager import Pair, beside_eager, keep_pages
from learning_at_home import ops
from learning_at_home.nn import MoE, Router

RAW = torch.ops.learning_at_home
HIDDEN = INNER = 512


def eager_layer(moe: MoE, x: Tensor) -> Tensor:
    """The same layer, on the same parameters; weights are a softmax over the chosen scores."""
    experts, k = moe.experts, moe.router.k
    best, index = moe.router.proj(x).topk(k, dim=1)
    weight = best.softmax(1)
    flat = index.flatten()
    counts = torch.bincount(flat, minlength=experts.num_experts)
    order = flat.argsort(stable=True)
    token = order // k
    outputs = []
    weights = (experts.w_in.unbind(), experts.w_out.unbind())  # w[e] would make each expert's gradient as large as all
    for rows, w_in, w_out in zip(x[token].split(counts.tolist()), *weights, strict=True):
        gate, up = (rows @ w_in).chunk(2, dim=1)
        outputs.append((nn.functional.silu(gate) * up) @ w_out)
    rows = torch.cat(outputs) * weight.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, token, rows)


def products_alone(moe: MoE, x: Tensor) -> Callable[[], object]:
    """The matrix products of the experts, forward and backward."""
    route = moe.router(x)
    rows, _ = ops.dispatch(x, route.index, route.rank, route.offset)
    w_in, w_out = (weight.detach() for weight in moe.experts.parameters())
    gated = RAW.grouped_mm(rows, w_in, route.offset)
    inner, grad = gated[:, : moe.experts.inner].contiguous(), torch.randn_like(rows)

    def products() -> object:
        forward = RAW.grouped_mm(rows, w_in, route.offset), RAW.grouped_mm(inner, w_out, route.offset)
        backward = (
            RAW.grouped_mm_backward(grad, inner, w_out, route.offset),
            RAW.grouped_mm_backward(gated, rows, w_in, route.offset),
        )
        return forward, backward

    return products


def layer(tokens: int, num_experts: int, k: int) -> Pair:
    """Both directions."""
    moe = MoE(Router(HIDDEN, num_experts, k), INNER)
    x = torch.randn(tokens, HIDDEN, requires_grad=True)
    leaves = (x, *moe.parameters())
    torch.testing.assert_close(moe(x), eager_layer(moe, x), rtol=1e-3, atol=1e-4)

    def ours() -> object:
        return torch.autograd.grad(moe(x).square().sum(), leaves)

    def eager() -> object:
        return torch.autograd.grad(eager_layer(moe, x).square().sum(), leaves)

    forward = torch.compile(eager_layer, dynamic=False)

    def compiled() -> object:
        return torch.autograd.grad(forward(moe, x).square().sum(), leaves)

    with torch.no_grad():
        others = {"products alone": products_alone(moe, x)}
    return Pair(ours, eager, others=others, compiled=compiled)


def main() -> None:
    """Run it."""
    keep_pages("benchmarks.moe.local_moe")
    options = parse_options(__doc__)
    tokens, num_experts = (1024, 16) if options.quick else (4096, 64)
    torch.manual_seed(0)
    pairs = {f"MoE forward and backward, k={k}": layer(tokens, num_experts, k) for k in (1, 2, 4, 8)}
    beside_eager(
        f"A mixture of {num_experts} local experts, {tokens} tokens", pairs, options, repeats=2, compiling=options.full
    )


if __name__ == "__main__":
    main()
