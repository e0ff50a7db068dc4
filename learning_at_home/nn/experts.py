"""Expert modules that ``learning-at-home server`` serves by name. Any other ``nn.Module`` serves as well.

A server keeps nothing between a forward call and its backward call: it computes the forward pass again, from the
inputs that the backward call brings. Random layers therefore draw other numbers the second time: with ordinary dropout,
as in `TransformerExpert`, the gradient is that of another draw than the outputs which the trainer saw. Where that
matters, make the randomness an input, as `DeterministicDropoutExpert` does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learning_at_home.nn.registry import register_expert_class

SEQUENCE = 512  # positions of a transformer expert's input, as in the paper


def _rows(batch: int, hidden: int) -> Tensor:
    return torch.empty(batch, hidden)


@register_expert_class("ffn", _rows)
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


@register_expert_class("transformer", lambda batch, hidden: torch.empty(batch, SEQUENCE, hidden))
class TransformerExpert(nn.Module):
    """Encoder layer with the normalisation after each residual sum (Vaswani et al. 2017), GELU, dropout 0.1.

    ``[B, S, hidden]`` to ``[B, S, hidden]``, S = 512 when served by name; 16 heads, or the largest number below
    that divides ``hidden``.

    :param hidden: width of inputs and outputs
    :param inner: width of the feed-forward layer
    :param dropout: see the module's own words on random layers
    """

    def __init__(self, hidden: int, inner: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        heads = next(heads for heads in range(min(16, hidden), 0, -1) if hidden % heads == 0)
        self.layer = nn.TransformerEncoderLayer(
            hidden, heads, dim_feedforward=inner, dropout=dropout, activation="gelu", batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@register_expert_class("nop", _rows)
class NopExpert(nn.Module):
    """Returns its input, ``[B, hidden]``: what a call costs when the expert costs nothing."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.unused = nn.Parameter(torch.zeros(()))  # torch's optimizers refuse an empty list of parameters

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


@register_expert_class(
    "det_dropout", lambda batch, hidden: (torch.empty(batch, hidden), torch.empty(batch, hidden, dtype=torch.bool))
)
class DeterministicDropoutExpert(nn.Module):
    """A feed-forward expert behind a dropout whose mask the caller gives, so forward and backward calls agree on it.

    ``x: [B, hidden]`` and ``mask: bool [B, hidden]`` (true: keep) to ``[B, hidden]``. What is kept is scaled by
    ``1 / (1 - p)``; in eval mode the mask is ignored.

    :param hidden: width of inputs, masks and outputs
    :param p: the share of values that the caller's masks drop
    """

    def __init__(self, hidden: int, p: float = 0.2) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: expected 0 to 1, got {p}")
        self.keep = 1.0 - p
        self.ffn = FeedForwardExpert(hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.training:
            x = x * mask / self.keep
        return self.ffn(x)
