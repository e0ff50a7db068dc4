"""Expert modules that ``learning-at-home server`` serves by name. Any other ``nn.Module`` serves as well."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class FeedForwardExpert(nn.Module):
    """Residual feed-forward block, the expert of the Learning@home paper (arXiv 2002.04013).

    ``[B, hidden]`` to ``[B, hidden]``: ``x + MLP(x)``, where the MLP has two hidden layers of width
    ``inner``, each followed by layer normalisation and ReLU.

    :param hidden: width of inputs and outputs
    :param inner: width of the two hidden layers; default ``4 * hidden``
    """

    def __init__(self, hidden: int, inner: int | None = None) -> None:
        super().__init__()
        inner = 4 * hidden if inner is None else inner
        if hidden < 1 or inner < 1:
            raise ValueError(f"widths must be positive, got hidden={hidden}, inner={inner}")
        self.layers = nn.Sequential(
            nn.Linear(hidden, inner),
            nn.LayerNorm(inner),
            nn.ReLU(),
            nn.Linear(inner, inner),
            nn.LayerNorm(inner),
            nn.ReLU(),
            nn.Linear(inner, hidden),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class NopExpert(nn.Module):
    """Returns its input, ``[B, hidden]``: what a call costs when the expert costs nothing."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.unused = nn.Parameter(torch.zeros(()))  # torch's optimizers refuse an empty list of parameters

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


EXPERTS: dict[str, Callable[[int], nn.Module]] = {"ffn": FeedForwardExpert, "nop": NopExpert}
