"""The expert that every side serves: it returns its input, so that what is measured is everything around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Nop(nn.Module):
    """[B, hidden] to the same. Its one parameter is unused: optimizers refuse an empty list."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x
