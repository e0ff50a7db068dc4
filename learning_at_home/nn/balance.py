"""The losses of a router, and a way to train on them without touching the caller's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def balance_loss(stats: Tensor) -> Tensor:
    """E * sum_e f_e * p_e (Switch Transformers, Fedus et al. 2021, eq. 4), 1 when balanced; differentiable in p.

    Args:
        stats: [2, E] of an `ops.Route`: assignments, and mean probability over the experts alive.
    """
    assigned, probability = stats[0], stats[1]
    return len(assigned) * (assigned / assigned.sum().clamp(min=1) * probability).sum()


def z_loss(lse: Tensor) -> Tensor:
    """mean_t lse_t^2 (ST-MoE, Zoph et al. 2022, eq. 5): keeps logits small; differentiable.

    Args:
        lse: [T] of an `ops.Route`, logsumexp of a token's scores.
    """
    return lse.square().mean() if len(lse) else lse.sum()


def add_gradient_of(output: Tensor, loss: Tensor, weight: Callable[[], float]) -> Tensor:
    """Return `output` unchanged; its backward pass also backpropagates `weight() * loss`."""
    return _AddGradient.apply(output, loss, weight)


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor, weight: Callable[[], float]) -> Tensor:
        ctx.weight = weight
        ctx.like = loss.detach()
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, torch.full_like(ctx.like, ctx.weight()), None
