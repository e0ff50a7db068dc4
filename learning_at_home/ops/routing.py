"""Choosing experts: `route` and `route_grid`; `plan` for choices made elsewhere; the bitmap of the experts alive.

Autograd sits in the public functions and not in the ops (a Function costs far less per call than an op's registered
autograd): a raw `torch.ops.learning_at_home.*` op gives no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import reference
from .arguments import FLOATS, MAX_CHOICES, MAX_EXPERTS, MAX_GROUPS, check_range, check_tensor, checked_grid, contiguous

SCORES = {"softmax": reference.LOGIT, "sigmoid": reference.SIGMOID}


class Route(NamedTuple):
    """What `route` or `route_grid` decided for T tokens, k choices and E experts."""

    index: Tensor  # type: ignore[assignment] # hides tuple.index
    score: Tensor
    rank: Tensor
    offset: Tensor
    lse: Tensor
    stats: Tensor


def route_grid(
    logits: Tensor,
    grid: Sequence[int],
    k: int,
    *,
    alive: Tensor | None = None,
    beam: int = 0,
    capacity: int = 0,
    align: int = 1,
    want_lse: bool = False,
    want_stats: bool = False,
) -> Route:
    """Choose the k best experts of a product grid for each token, and lay out the rows of these choices.

    Expert (i1, ..., id) of `grid` has the flat, row-major id e and the score s1[i1] + s2[i2] + ... + sd[id],
    where s1, ..., sd are consecutive slices of a token's logits (product keys: Lample et al. 2019; as a grid
    of experts: Ryabinin & Gusev 2020). The search is exact at any depth, by
    the threshold rule (Fagin et al. 2001): best prefixes first, until no further one can matter.

    An expert is void for a token, and never chosen, if it is dead or its score is NaN or infinite. Ties go to
    the lower id.

    Args:
        logits: [T, sum(grid)], float32, or float64; bfloat16 and float16 are converted to float32.
        grid: sizes of 1 to 8 axes; E = prod(grid) <= 65536.
        k: choices a token, 1 to 32; may exceed the number of experts alive.
        alive: int32 [ceil(E / 32)] from `alive_bitmap`, on the device of logits. None: all experts are alive.
        beam: 0 searches all experts. b > 0 bounds the work on deep grids: only experts of a token's b best
            prefixes (all coordinates but the last) that have an expert alive are considered. Without effect
            on grids of one axis.
        capacity: the most rows an expert takes; later assignments get no row. 0: no limit.
        align: the rows of an expert start at a multiple of this.
        want_lse: also return lse.
        want_stats: also return stats, and lse.

    Returns:
        index: int32 [T, k], flat ids, best first; -1 is void (fewer than k experts alive).
        score: [T, k], differentiable; 0 where void, so that no arithmetic on it makes a NaN.
        rank: int32 [T, k], the number of earlier assignments (t, j) to the same expert; -1 where void or at
            capacity.
        offset: int32 [E + 1], the first row of each expert; multiples of align.
        lse: [T], logsumexp of the scores of all usable experts, 0 where there is none; differentiable. Else
            empty.
        stats: [2, E], else empty. stats[0]: assignments to each expert before capacity; stats[1]: mean over
            tokens of the softmax over all usable experts, differentiable. The load-balancing loss of Switch
            Transformers is `E * (stats[0] / stats[0].sum() * stats[1]).sum()`.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range.
    """
    grid = checked_grid("grid", grid)
    experts = math.prod(grid)
    check_tensor("logits", logits, FLOATS, ("T", sum(grid)))
    check_range("beam", beam, 0)
    logits = _checked(logits, experts, k, alive, capacity, align)
    return Route(*_RouteGrid.apply(logits, grid, k, alive, beam, capacity, align, want_lse, want_stats))


def route(
    logits: Tensor,
    k: int,
    *,
    alive: Tensor | None = None,
    bias: Tensor | None = None,
    score: str = "softmax",
    groups: int = 1,
    top_groups: int = 1,
    capacity: int = 0,
    align: int = 1,
    want_lse: bool = False,
    want_stats: bool = False,
) -> Route:
    """Choose the k best of E experts for each token, by a logit each, and lay out the rows of these choices.

    With the defaults it is `route_grid` on the grid (E,). Beside it: sigmoid scores, a bias that steers the choice but
    no weight (loss-free balancing: Wang et al. 2024), and a choice limited to the best groups of experts (DeepSeek-V3:
    DeepSeek-AI 2024). An expert is chosen by its key, score + bias; void are the dead and those whose logit or key is
    NaN or infinite. Ties go to the lower id.

    Args:
        logits: [T, E], float32, or float64; bfloat16 and float16 are converted to float32. E <= 65536.
        k: choices a token, 1 to 32; may exceed the number of experts alive.
        alive: as of `route_grid`.
        bias: [E], on the device of logits, converted to their dtype; gets no gradient. None: zeros.
        score: "softmax": the logit itself, for `combine` to normalise by its "softmax"; "sigmoid": the logit's sigmoid,
            for `combine` to normalise by "sum".
        groups: 1 to 32, a divisor of E: groups of E / groups consecutive experts.
        top_groups: 1 to groups: only experts of a token's best groups are chosen; a group is as good as the sum of its
            two best keys.
        capacity, align, want_lse, want_stats: as of `route_grid`.

    Returns:
        As of `route_grid`; lse is that of the logits, without bias. With "sigmoid", stats[1] is the mean over tokens of
        each sigmoid's share of the sum over all usable experts (DeepSeek-V3, eq. 18-19).

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range.
    """
    check_tensor("logits", logits, FLOATS, ("T", "E"))
    experts = logits.size(1)
    check_range("E", experts, 1, MAX_EXPERTS)
    logits = _checked(logits, experts, k, alive, capacity, align)
    check_range("groups", groups, 1, MAX_GROUPS)
    if experts % groups:
        raise ValueError(f"groups: expected a divisor of {experts} experts, got {groups}")
    check_range("top_groups", top_groups, 1, groups)
    if score not in SCORES:
        raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {score!r}")
    if bias is not None:
        check_tensor("bias", bias, FLOATS, (experts,), like=logits)
        bias = bias.detach().to(logits.dtype).contiguous()
    options = (groups, top_groups, capacity, align, want_lse, want_stats)
    return Route(*_Route.apply(logits, k, alive, bias, SCORES[score], *options))


def _checked(logits: Tensor, experts: int, k: int, alive: Tensor | None, capacity: int, align: int) -> Tensor:
    """Check what `route` and `route_grid` share; logits in float32, or float64."""
    check_range("k", k, 1, MAX_CHOICES)
    check_range("capacity", capacity, 0)
    check_range("align", align, 1)
    if alive is not None:
        check_tensor("alive", alive, (torch.int32,), ((experts + 31) // 32,), like=logits)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class Plan(NamedTuple):
    """Where the rows of T * k choices are: what `dispatch` and `combine` take beside index.

    Made with align 1, no row before offset[E] is free. CUDA kernels rely on it where R = T * k: of a layout by hand
    that leaves some free there, those rows are not cleared.
    """

    rank: Tensor
    offset: Tensor
    count: Tensor  # type: ignore[assignment] # hides tuple.count


def plan(index: Tensor, num_experts: int, *, capacity: int = 0, align: int = 1) -> Plan:
    """Rank choices that were made elsewhere and lay out their rows, as `route_grid` does with its own.

    Args:
        index: int32 [T, k], expert ids; anything out of range is void.
        num_experts: E, at most 65536.
        capacity, align: as of `route_grid`.

    Returns:
        rank: int32 [T, k]. offset: int32 [E + 1]. count: int32 [E], choices of each expert before capacity.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range.
    """
    check_tensor("index", index, (torch.int32,), ("T", "k"))
    check_range("num_experts", num_experts, 1, MAX_EXPERTS)
    check_range("capacity", capacity, 0)
    check_range("align", align, 1)
    return Plan(*torch.ops.learning_at_home.plan(index.contiguous(), num_experts, capacity=capacity, align=align))


def alive_bitmap(alive: Tensor | Sequence[int], num_experts: int) -> Tensor:
    """Pack the set of experts alive into the bitmap that `route_grid` takes.

    Args:
        alive: a bool tensor of num_experts elements (any shape, row-major), or the flat ids of the experts
            alive as an integer tensor or a sequence of ints, in any order.
        num_experts: E.

    Returns:
        int32 [ceil(E / 32)] on the device of alive: expert e is bit e % 32 of word e // 32.

    Raises:
        TypeError, ValueError: an argument of wrong type, size or range.
    """
    check_range("num_experts", num_experts, 1, MAX_EXPERTS)
    ids = alive if isinstance(alive, Tensor) else torch.tensor(list(alive), dtype=torch.int64)
    if ids.dtype == torch.bool:
        if ids.numel() != num_experts:
            raise ValueError(f"alive: expected a mask of {num_experts} elements, got shape {list(ids.shape)}")
        mask = ids.reshape(-1)
    else:
        if ids.is_floating_point() or ids.is_complex():
            raise TypeError(f"alive: expected a bool mask or integer ids, got {ids.dtype}")
        if bool(((ids < 0) | (ids >= num_experts)).any()):
            raise ValueError(
                f"alive: expected ids from 0 to {num_experts - 1}, got {int(ids.min())} to {int(ids.max())}"
            )
        mask = torch.zeros(num_experts, dtype=torch.bool, device=ids.device)
        mask[ids.reshape(-1).long()] = True
    words = torch.nn.functional.pad(mask, (0, -num_experts % 32)).view(-1, 32)
    return (words.long() << torch.arange(32, device=mask.device)).sum(1).int()  # the highest bit wraps into the sign


class _Routing(torch.autograd.Function):
    """The backward of both: `_keep` keeps what it needs, `constants` are inputs without a gradient."""

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _index: Any, grad_score: Tensor | None, _rank: Any, _offset: Any, *grads: Tensor | None
    ) -> Any:
        logits, index, lse, alive = ctx.saved_tensors
        grad_lse = grads[0] if ctx.has_lse else None
        grad_stats = grads[1] if ctx.has_stats else None
        grad_logits = torch.ops.learning_at_home.route_backward(
            contiguous(grad_score),
            contiguous(grad_lse),
            contiguous(grad_stats),
            logits,
            ctx.grid,
            index,
            lse,
            alive=alive,
            score=ctx.score,
        )
        return (grad_logits, *[None] * ctx.constants)


def _keep(ctx: Any, logits: Tensor, grid: list[int], alive: Tensor | None, score: int, outputs: Any) -> Any:
    index, _, rank, offset, lse, _ = outputs
    ctx.grid, ctx.score = grid, score
    ctx.save_for_backward(logits, index, lse, alive)
    ctx.mark_non_differentiable(index, rank, offset)
    ctx.set_materialize_grads(False)
    return outputs


class _RouteGrid(_Routing):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        grid: list[int],
        k: int,
        alive: Tensor | None,
        beam: int,
        capacity: int,
        align: int,
        want_lse: bool,
        want_stats: bool,
    ) -> Any:
        logits = logits.contiguous()
        outputs = torch.ops.learning_at_home.route_grid(
            logits,
            grid,
            k,
            alive=alive,
            beam=beam,
            capacity=capacity,
            align=align,
            want_lse=want_lse,
            want_stats=want_stats,
        )
        ctx.has_lse, ctx.has_stats, ctx.constants = want_lse or want_stats, want_stats, 8
        return _keep(ctx, logits, grid, alive, reference.LOGIT, outputs)


class _Route(_Routing):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        k: int,
        alive: Tensor | None,
        bias: Tensor | None,
        score: int,
        groups: int,
        top_groups: int,
        capacity: int,
        align: int,
        want_lse: bool,
        want_stats: bool,
    ) -> Any:
        logits = logits.contiguous()
        outputs = torch.ops.learning_at_home.route(
            logits,
            k,
            alive=alive,
            bias=bias,
            score=score,
            groups=groups,
            top_groups=top_groups,
            capacity=capacity,
            align=align,
            want_lse=want_lse,
            want_stats=want_stats,
        )
        ctx.has_lse, ctx.has_stats, ctx.constants = want_lse or want_stats, want_stats, 10
        return _keep(ctx, logits, [logits.size(1)], alive, score, outputs)
