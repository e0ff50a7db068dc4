"""The experts that every side serves: next to no work, so that what is measured is everything around it."""

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


EXPERTS = {"nop": Nop, "shift": Shift}
