"""The specification of every op, in plain torch. The kernels must agree: index, rank, offset and score bit
for bit, other values up to rounding.

Shapes and names as in `schemas.py`. Void means: not to be chosen, because dead or because the score is not
finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SOFTMAX, SUM, NONE = 0, 1, 2  # `normalize` of combine
LOGIT, SIGMOID = 0, 1  # `score` of route
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # of quantized rows


def rows_of(assignments: int, experts: int, align: int) -> int:
    """R: the rows that hold `assignments` in any distribution over `experts`, each expert's first row a
    multiple of `align`.
    """
    if align == 1:
        return assignments
    return (assignments + experts * (align - 1) + align - 1) // align * align


def grid_scores(logits: Tensor, grid: list[int]) -> Tensor:
    """[T, sum(grid)] -> [T, E]: the score of expert (i1, ..., id) is s1[i1] + s2[i2] + ..., added from left
    to right.
    """
    score, *rest = logits.split(grid, dim=1)
    for axis in rest:
        score = (score.unsqueeze(2) + axis.unsqueeze(1)).flatten(1)
    return score


def unpack_alive(alive: Tensor, experts: int) -> Tensor:
    """Bitmap int32 [ceil(E / 32)] -> bool [E]: expert e is bit e % 32 of word e // 32."""
    e = torch.arange(experts, device=alive.device)
    return (alive[e // 32] >> (e % 32).int() & 1).bool()


def usable_experts(score: Tensor, alive: Tensor | None) -> Tensor:
    """bool [T, E]: alive and finite."""
    finite = score.isfinite()
    return finite if alive is None else finite & unpack_alive(alive, score.size(1))


def best_prefixes(logits: Tensor, grid: list[int], alive: Tensor | None, beam: int) -> Tensor:
    """bool [T, E]: the experts of each token's `beam` best prefixes (all coordinates but the last) that have
    any expert alive.
    """
    last = grid[-1]
    prefix = grid_scores(logits[:, :-last], grid[:-1])
    prefix = prefix.masked_fill(~prefix.isfinite(), -math.inf)
    if alive is not None:
        prefix = prefix.masked_fill(~unpack_alive(alive, prefix.size(1) * last).view(-1, last).any(1), -math.inf)
    best = (prefix + 0.0).argsort(dim=1, descending=True, stable=True)[:, :beam]
    return torch.zeros_like(prefix, dtype=torch.bool).scatter(1, best, True).repeat_interleave(last, dim=1)


def plan(index: Tensor, experts: int, *, capacity: int = 0, align: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(rank, offset, count): rank among the earlier assignments to the same expert, in (t, j) order; count
    [E] is taken before capacity. An id out of range is void.
    """
    flat = index.flatten().long()
    flat = flat.masked_fill((flat < 0) | (flat >= experts), -1)
    order = flat.argsort(stable=True)
    count = torch.bincount(flat + 1, minlength=experts + 1)  # entry 0 counts the void
    start = count.cumsum(0) - count
    rank = torch.empty_like(flat)
    rank[order] = torch.arange(len(flat), device=flat.device) - start[flat[order] + 1]
    count = count[1:]
    kept = count.clamp(max=capacity) if capacity else count
    offset = torch.nn.functional.pad(((kept + align - 1) // align * align).cumsum(0), (1, 0)).int()
    dropped = (flat < 0) | (rank >= capacity) if capacity else flat < 0
    return rank.masked_fill(dropped, -1).view(index.shape).int(), offset, count.int()


def choose(key: Tensor, k: int) -> Tensor:
    """[T, E] -> int32 [T, k]: the best keys' ids, best first; -1 instead of minus infinity."""
    key = key + 0.0  # -0 and +0 are equal; a stable sort leaves ties to the lower id
    key = torch.nn.functional.pad(key, (0, max(0, k - key.size(1))), value=-math.inf)
    best, index = (x[:, :k] for x in key.sort(dim=1, descending=True, stable=True))
    return index.masked_fill(best == -math.inf, -1).int()


def chosen(score: Tensor, index: Tensor) -> Tensor:
    """[T, k]: the scores at index; 0 where void."""
    return score.gather(1, index.clamp(min=0).long()).masked_fill(index < 0, 0.0)


def masked_lse(logits: Tensor, usable: Tensor) -> Tensor:
    """[T]: logsumexp over the usable; 0 where there is none."""
    lse = logits.masked_fill(~usable, -math.inf).logsumexp(dim=1)
    return lse.masked_fill(~usable.any(dim=1), 0.0)


def route_grid(
    logits: Tensor,
    grid: list[int],
    k: int,
    *,
    alive: Tensor | None = None,
    beam: int = 0,
    capacity: int = 0,
    align: int = 1,
    want_lse: bool = False,
    want_stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    score = grid_scores(logits, grid)
    usable = usable_experts(score, alive)
    searched = usable & best_prefixes(logits, grid, alive, beam) if beam and len(grid) > 1 else usable
    index = choose(score.masked_fill(~searched, -math.inf), k)
    rank, offset, count = plan(index, score.size(1), capacity=capacity, align=align)
    lse, stats = logits.new_empty(0), logits.new_empty(0)  # an op's outputs may not share memory
    if want_lse or want_stats:
        lse = masked_lse(score, usable)
    if want_stats:
        probability = (score - lse[:, None]).exp().masked_fill(~usable, 0.0)
        stats = torch.stack([count.to(score.dtype), probability.sum(0) / max(len(score), 1)])
    return index, chosen(score, index), rank, offset, lse, stats


def keep_best_groups(key: Tensor, groups: int, top_groups: int) -> Tensor:
    """Minus infinity outside each token's best groups: those with the greatest sums of their two best keys."""
    size = key.size(1) // groups
    best = key.view(len(key), groups, size).topk(min(2, size), dim=2).values
    void = best[:, :, 0] == -math.inf
    value = best.masked_fill(best == -math.inf, 0.0).sum(2).masked_fill(void, -math.inf)
    kept = choose(value, top_groups)
    mask = torch.zeros(len(key), groups + 1, dtype=torch.bool, device=key.device)  # the last column takes the void
    mask = mask.scatter(1, kept.long().masked_fill(kept < 0, groups), True)[:, :groups]
    return key.masked_fill(~mask.repeat_interleave(size, dim=1), -math.inf)


def sigmoid_shares(logits: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """(sigmoids [T, E], zero where not usable; one over their sum [T, 1], zero where that is zero)."""
    value = logits.sigmoid().masked_fill(~usable, 0.0)
    total = value.sum(1, keepdim=True)
    return value, (1 / total).masked_fill(total == 0, 0.0)


def route(
    logits: Tensor,
    k: int,
    *,
    alive: Tensor | None = None,
    bias: Tensor | None = None,
    score: int = LOGIT,
    groups: int = 1,
    top_groups: int = 1,
    capacity: int = 0,
    align: int = 1,
    want_lse: bool = False,
    want_stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    usable = usable_experts(logits, alive)
    value = logits.sigmoid() if score == SIGMOID else logits
    key = value if bias is None else value + bias
    key = key.masked_fill(~(usable & key.isfinite()), -math.inf)
    if top_groups < groups:
        key = keep_best_groups(key, groups, top_groups)
    index = choose(key, k)
    rank, offset, count = plan(index, logits.size(1), capacity=capacity, align=align)
    lse, stats = logits.new_empty(0), logits.new_empty(0)
    if want_lse or want_stats:
        lse = masked_lse(logits, usable)
    if want_stats:
        probability = (logits - lse[:, None]).exp().masked_fill(~usable, 0.0)
        if score == SIGMOID:
            sigmoids, share = sigmoid_shares(logits, usable)
            probability = sigmoids * share
        stats = torch.stack([count.to(logits.dtype), probability.sum(0) / max(len(logits), 1)])
    return index, chosen(value, index), rank, offset, lse, stats


def route_backward(
    grad_score: Tensor | None,
    grad_lse: Tensor | None,
    grad_stats: Tensor | None,
    logits: Tensor,
    grid: list[int],
    index: Tensor,
    lse: Tensor,
    *,
    alive: Tensor | None = None,
    score: int = LOGIT,
) -> Tensor:
    if score == SIGMOID:
        return sigmoid_backward(grad_score, grad_lse, grad_stats, logits, index, lse, alive)
    grad = logits.new_zeros(len(logits), math.prod(grid))
    if grad_score is not None:
        void = index < 0
        grad.scatter_add_(1, index.long().masked_fill(void, 0), grad_score.masked_fill(void, 0.0))
    if grad_lse is not None or grad_stats is not None:
        scores = grid_scores(logits, grid)
        probability = (scores - lse[:, None]).exp().masked_fill(~usable_experts(scores, alive), 0.0)
        slope = torch.zeros_like(lse)[:, None] if grad_lse is None else grad_lse[:, None]
        if grad_stats is not None:  # stats[1] is the mean probability; its softmax couples all experts of a token
            mean = grad_stats[1:] / max(len(logits), 1)
            slope = slope + mean - (probability * mean).sum(1, keepdim=True)
        grad = grad + probability * slope
    cube = grad.view(-1, *grid)
    others = [[a + 1 for a in range(len(grid)) if a != axis] for axis in range(len(grid))]
    return torch.cat([cube.sum(dim) if dim else cube for dim in others], dim=1)


def sigmoid_backward(
    grad_score: Tensor | None,
    grad_lse: Tensor | None,
    grad_stats: Tensor | None,
    logits: Tensor,
    index: Tensor,
    lse: Tensor,
    alive: Tensor | None,
) -> Tensor:
    """`route_backward` of sigmoid scores: stats[1] is the mean of each sigmoid's share of a token's sum."""
    usable = usable_experts(logits, alive)
    value, share = sigmoid_shares(logits, usable)
    grad = torch.zeros_like(logits)
    if grad_score is not None:
        void = index < 0
        grad.scatter_add_(1, index.long().masked_fill(void, 0), grad_score.masked_fill(void, 0.0))
    if grad_stats is not None:
        mean = grad_stats[1:] / max(len(logits), 1)
        grad = grad + share * (mean - (value * share * mean).sum(1, keepdim=True))
    grad = grad * value * (1 - value)
    if grad_lse is not None:
        grad = grad + grad_lse[:, None] * (logits - lse[:, None]).exp().masked_fill(~usable, 0.0)
    return grad


def positions(index: Tensor, rank: Tensor, offset: Tensor, ok: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """(row int64 [T, k], live bool [T, k]): the row of each assignment (0 where it has none), and whether it
    may be read.
    """
    row = offset[index.clamp(min=0).long()].long() + rank.long()
    live = (index >= 0) & (rank >= 0) & (row < rows)
    row = row.masked_fill(~live, 0)
    return row, live if ok is None or rows == 0 else live & ok[row]


def live_rows(rows: Tensor, row: Tensor, live: Tensor) -> Tensor:
    """[T, k, H] in the type sums are made in; zero where not live, whatever the row holds."""
    if len(rows) == 0:
        return accumulated(rows).new_zeros(*row.shape, rows.size(1))
    return accumulated(rows[row]).masked_fill(~live[:, :, None], 0)


def accumulated(x: Tensor) -> Tensor:
    """Sums are made in float32, or in float64 of float64."""
    return x if x.dtype == torch.float64 else x.float()


def dispatch(x: Tensor, index: Tensor, rank: Tensor, offset: Tensor, *, align: int = 1) -> tuple[Tensor, Tensor]:
    r = rows_of(index.numel(), len(offset) - 1, align)
    row, live = positions(index, rank, offset, None, r)
    source = index.new_full([r], -1)
    source[row[live]] = torch.arange(index.numel(), device=x.device).int().view(index.shape)[live]
    rows = x.new_zeros(r, x.size(1))
    rows[row[live]] = x[live.nonzero()[:, 0]]
    return rows, source


def quantize(x: Tensor, dtype: torch.dtype, block: int) -> tuple[Tensor, Tensor]:
    """(rows [T, H], scale) of float32 x: `block` consecutive elements (0: all of a row) share the scale
    absmax / largest, at least 2^-126, and are multiplied by its inverse, all in float32. Elements whose absmax is not
    finite become zeros with the scale NaN: all of them read as NaN.
    """
    if dtype == torch.bfloat16:
        return x.to(dtype), x.new_empty(0)
    hidden = x.size(1)
    width = block or max(hidden, 1)
    blocks = -(-hidden // block) if block else 1
    x = torch.nn.functional.pad(x, (0, blocks * width - hidden)).view(len(x), blocks, width)
    absmax = x.abs().amax(2, keepdim=True)
    scale = (absmax / torch.full_like(absmax, LARGEST[dtype])).clamp(min=2.0**-126)
    scale = scale.masked_fill(absmax == 0, 0.0).masked_fill(~absmax.isfinite(), math.nan)
    scaled = (x * scale.reciprocal()).masked_fill(~(scale > 0), 0.0).flatten(1)[:, :hidden]
    rows = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
    return rows, scale.flatten(1) if block else scale.flatten()


def dispatch_quantized(
    x: Tensor,
    index: Tensor,
    rank: Tensor,
    offset: Tensor,
    *,
    dtype: torch.dtype,
    block: int = 0,
    align: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    values, scale = quantize(x.float(), dtype, block)
    integers = torch.int16 if dtype == torch.bfloat16 else torch.int8  # not every torch can index float8
    rows, source = dispatch(values.view(integers), index, rank, offset, align=align)
    if dtype != torch.bfloat16:
        scale = dispatch(scale if block else scale[:, None], index, rank, offset, align=align)[0]
    return rows.view(dtype), scale if block else scale.flatten(), source


def dequantize(rows: Tensor, scale: Tensor, *, dtype: torch.dtype, block: int = 0) -> Tensor:
    values = rows.float()
    if rows.dtype != torch.bfloat16:
        scale = scale.repeat_interleave(block, dim=1)[:, : rows.size(1)] if block else scale[:, None]
        values = values * scale
    return values.to(dtype)


def dispatch_backward(
    grad_rows: Tensor, index: Tensor, rank: Tensor, offset: Tensor, *, ok: Tensor | None = None
) -> Tensor:
    row, live = positions(index, rank, offset, ok, len(grad_rows))
    return live_rows(grad_rows, row, live).sum(1).to(grad_rows.dtype)


def combine(
    rows: Tensor,
    score: Tensor,
    index: Tensor,
    rank: Tensor,
    offset: Tensor,
    *,
    ok: Tensor | None = None,
    normalize: int = SOFTMAX,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    row, live = positions(index, rank, offset, ok, len(rows))
    weight = score.masked_fill(~live, 0.0)
    if normalize == SOFTMAX:  # no live row: softmax gives NaN, and the weights are zero
        weight = score.masked_fill(~live, -math.inf).softmax(1).masked_fill(~live, 0.0)
    elif normalize == SUM:
        total = weight.sum(1, keepdim=True)
        weight = (weight / total).masked_fill(total == 0, 0.0)
    out = (weight[:, :, None] * live_rows(rows, row, live)).sum(1)
    if residual is not None:
        out = out + residual
    return out.to(rows.dtype), weight


def combine_backward(
    grad: Tensor,
    rows: Tensor,
    score: Tensor,
    weight: Tensor,
    index: Tensor,
    rank: Tensor,
    offset: Tensor,
    *,
    ok: Tensor | None = None,
    normalize: int = SOFTMAX,
) -> tuple[Tensor, Tensor]:
    row, live = positions(index, rank, offset, ok, len(rows))
    g = accumulated(grad)[:, None, :]
    grad_rows = torch.zeros_like(rows)
    grad_rows[row[live]] = (weight[:, :, None] * g)[live].to(rows.dtype)
    a = (g * live_rows(rows, row, live)).sum(2)  # dL / dw
    mean = (weight * a).sum(1, keepdim=True)
    if normalize == SOFTMAX:
        grad_score = weight * (a - mean)
    elif normalize == SUM:
        total = score.masked_fill(~live, 0.0).sum(1, keepdim=True)
        grad_score = ((a - mean) / total).masked_fill(total == 0, 0.0)
    else:
        grad_score = a
    return grad_rows, grad_score.masked_fill(~live, 0.0)


def swiglu(x: Tensor, weight: Tensor | None = None) -> Tensor:
    gate, up = accumulated(x).chunk(2, dim=1)
    out = torch.nn.functional.silu(gate) * up
    return (out if weight is None else out * weight[:, None]).to(x.dtype)


def swiglu_backward(grad: Tensor, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    gate, up = accumulated(x).chunk(2, dim=1)
    g = accumulated(grad)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    grad_weight = gate.new_empty(0) if weight is None else (g * silu * up).sum(1)
    if weight is not None:
        g = g * weight[:, None]
    grad_x = torch.cat([g * up * (sigmoid + silu * (1 - sigmoid)), g * silu], dim=1)
    return grad_x.to(x.dtype), grad_weight
