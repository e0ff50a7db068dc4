"""A mixture layer on one device: ours, and as torchtitan writes it with torch's own ops and grouped product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.eager import Pair
from learning_at_home.nn import MoE, Router


class Sizes(NamedTuple):
    """T, E, H and F."""

    tokens: int
    experts: int
    hidden: int
    inner: int


LARGE = Sizes(16384, 64, 4096, 1536)
SMALL = Sizes(256, 64, 1024, 512)
TINY = Sizes(96, 8, 64, 32)  # to try the code


def eager_layer(moe: MoE, x: Tensor) -> Tensor:
    """Top-k and softmax, a stable sort, a gather, grouped products, a scatter-add; nothing waits for the device."""
    experts, k = moe.experts, moe.router.k
    best, index = moe.router.proj(x).float().topk(k, dim=1)
    ordered, order = index.flatten().sort(stable=True)
    ids = torch.arange(experts.num_experts, device=x.device)
    ends = torch.searchsorted(ordered, ids, right=True).int()
    token = order // k
    product = torch.nn.functional.grouped_mm
    gate, up = product(x.index_select(0, token), experts.w_in, offs=ends).chunk(2, dim=1)
    rows = product(torch.nn.functional.silu(gate) * up, experts.w_out, offs=ends)
    weight = best.softmax(1).flatten()[order].to(x.dtype)
    return torch.zeros_like(x).index_add(0, token, rows * weight[:, None])


class Layer:
    """A layer in bfloat16 with its input and the gradient of its output."""

    def __init__(self, sizes: Sizes, k: int, device: torch.device):
        self.moe = MoE(Router(sizes.hidden, sizes.experts, k), sizes.inner).to(device, torch.bfloat16)
        self.x = torch.randn(sizes.tokens, sizes.hidden, device=device).bfloat16().requires_grad_()
        self.grad = torch.randn_like(self.x)
        self.leaves = (self.x, *self.moe.parameters())

    def check(self) -> None:
        """Both layers agree as far as bfloat16 does."""
        got, want = self.moe(self.x).double(), eager_layer(self.moe, self.x).double()
        error = ((got - want).norm() / want.norm()).item()
        if not error < 0.02:
            raise AssertionError(f"the layer differs from eager torch: {error:.3g} of its norm")

    def backward(self, out: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the input and of every parameter."""
        return torch.autograd.grad(out, self.leaves, self.grad)

    def pair(self) -> Pair:
        """Forward and backward of ours, eager and compiled."""
        compiled = torch.compile(eager_layer, dynamic=False)
        return Pair(
            lambda: self.backward(self.moe(self.x)),
            lambda: self.backward(eager_layer(self.moe, self.x)),
            compiled=lambda: self.backward(compiled(self.moe, self.x)),
        )
