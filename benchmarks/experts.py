"""The experts that every side serves: next to no work, so that what is measured is everything around it, and `ffn`, the
work of the paper's experts. Runs in any environment that has torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Nop(nn.Module):
    """[B, hidden] to the same, for forward calls. Its one parameter is unused: optimizers refuse an empty list."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Shift(nn.Module):
    """[B, hidden] plus one trained number, so that a backward call has something to compute and to update."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class FeedForward(nn.Module):
    """[B, hidden] to the same: what learning_at_home and hivemind both serve as "ffn" (arXiv 2002.04013)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        inner = 4 * hidden
        self.layers = nn.Sequential(
            *(nn.Linear(hidden, inner), nn.LayerNorm(inner), nn.ReLU()),
            *(nn.Linear(inner, inner), nn.LayerNorm(inner), nn.ReLU()),
            nn.Linear(inner, hidden),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


EXPERTS = {"nop": Nop, "shift": Shift, "ffn": FeedForward}
