"""The public, differentiable functions over the ops: `route_grid`, `dispatch`, `combine`, `swiglu`.

Autograd sits here and not in the ops (a Function costs far less per call than an op's registered autograd): a
raw `torch.ops.learning_at_home.*` op gives no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import reference

MAX_EXPERTS = 65536
MAX_GRID_DIMS = 8
MAX_CHOICES = 32
NORMALIZE = {"softmax": reference.SOFTMAX, "sum": reference.SUM, "none": reference.NONE}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Route(NamedTuple):
    """What `route_grid` decided for T tokens, k choices and E experts."""

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
    grid = _grid(grid)
    experts = math.prod(grid)
    _tensor("logits", logits, FLOATS, ("T", sum(grid)))
    _within("k", k, 1, MAX_CHOICES)
    _within("beam", beam, 0)
    _within("capacity", capacity, 0)
    _within("align", align, 1)
    if alive is not None:
        _tensor("alive", alive, (torch.int32,), ((experts + 31) // 32,), like=logits)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return Route(*_RouteGrid.apply(logits, grid, k, alive, beam, capacity, align, want_lse, want_stats))


def dispatch(x: Tensor, index: Tensor, rank: Tensor, offset: Tensor, *, align: int = 1) -> tuple[Tensor, Tensor]:
    """Copy each token to the rows of its experts: row `offset[index[t, j]] + rank[t, j]` is x[t].

    Args:
        x: [T, ...], any dtype (arguments other than activations travel the same way); differentiable in
            float32, float64, bfloat16 and float16.
        index, rank, offset: of `route_grid`.
        align: as given to `route_grid`.

    Returns:
        rows: [R, ...], R = T * k, or T * k + E * (align - 1) rounded up to align when align > 1. Rows of one
            expert are contiguous and in token order; rows that no assignment owns are zero.
        source: int32 [R], t * k + j, or -1 where no assignment owns the row.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range.
    """
    _plan(x, index, rank, offset)
    _tensor("x", x, None, (index.size(0), ...))
    _within("align", align, 1)
    flat = _flatten(x)
    if x.dtype in FLOATS:
        rows, source = _Dispatch.apply(flat, index, rank, offset, align)
    elif x.requires_grad:
        raise TypeError(f"x: expected a dtype without gradient or {_either(FLOATS)}, got {x.dtype}")
    else:
        rows, source = torch.ops.learning_at_home.dispatch(flat, index, rank, offset, align=align)
    return rows.view(len(rows), *x.shape[1:]), source


def combine(
    rows: Tensor,
    score: Tensor,
    index: Tensor,
    rank: Tensor,
    offset: Tensor,
    *,
    ok: Tensor | None = None,
    normalize: str = "softmax",
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix the rows of each token: out[t] is the sum of weight[t, j] * rows[offset[index[t, j]] + rank[t, j]].

    The sum is over live choices j: those that have a row, and the row is ok. Other rows are never read,
    whatever they hold, and get zero gradients. A token without live choices gets zeros. Sums are made in
    float32 (float64 of float64).

    Args:
        rows: [R, ...], float32, float64, bfloat16 or float16; differentiable.
        score: [T, k], differentiable.
        index, rank, offset: of `route_grid`.
        ok: bool [R], the rows that arrived. None: all.
        normalize: "softmax" over the live scores, "sum": score divided by the sum of the live scores (zeros
            if that is 0), "none": score.
        residual: [T, ...], dtype of rows, added to the sum; differentiable.

    Returns:
        out: [T, ...], dtype of rows.
        weight: [T, k], float32 (float64 with float64 rows), zero where not live; not differentiable.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range.
    """
    _plan(rows, index, rank, offset)
    _tensor("rows", rows, FLOATS, ("R", ...))
    _tensor("score", score, FLOATS, tuple(index.shape), like=rows)
    if ok is not None:
        _tensor("ok", ok, (torch.bool,), (rows.size(0),), like=rows)
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize: expected one of {', '.join(NORMALIZE)}, got {normalize!r}")
    if residual is not None:
        _tensor("residual", residual, (rows.dtype,), (index.size(0), *rows.shape[1:]), like=rows)
        residual = _flatten(residual)
    score = score.to(torch.float64 if rows.dtype == torch.float64 else torch.float32).contiguous()
    flat = _flatten(rows)
    out, weight = _Combine.apply(flat, score, index, rank, offset, ok, NORMALIZE[normalize], residual)
    return out.view(len(out), *rows.shape[1:]), weight


def swiglu(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The gated activation between the two matrix products of an expert: silu(gate) * up * weight (Shazeer 2020).

    Weights applied here, and not when the rows are combined, make combining a plain sum, and the rows need not be kept
    for the backward.

    Args:
        x: [R, 2 * F], float32, float64, bfloat16 or float16: gate [R, F] and up [R, F] side by side; differentiable.
        weight: [R], a factor of each row; differentiable. None: 1.

    Returns:
        [R, F], dtype of x; computed in float32 (float64 of float64) and rounded once.

    Raises:
        TypeError, ValueError: an argument of wrong type or shape.
    """
    _tensor("x", x, FLOATS, ("R", "2 * F"))
    if x.size(1) % 2:
        raise ValueError(f"x: expected an even number of columns, gate and up, got {_shown(x.shape)}")
    if weight is not None:
        _tensor("weight", weight, FLOATS, (x.size(0),), like=x)
        weight = weight.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
    return _Swiglu.apply(x.contiguous(), weight)


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
    _within("num_experts", num_experts, 1, MAX_EXPERTS)
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


class _RouteGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, grid: list[int], k: int, alive: Tensor | None, *options: Any) -> Any:
        logits = logits.contiguous()
        beam, capacity, align, want_lse, want_stats = options
        index, score, rank, offset, lse, stats = torch.ops.learning_at_home.route_grid(
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
        ctx.grid, ctx.has_lse, ctx.has_stats = grid, want_lse or want_stats, want_stats
        ctx.save_for_backward(logits, index, lse, alive)
        ctx.mark_non_differentiable(index, rank, offset)
        ctx.set_materialize_grads(False)
        return index, score, rank, offset, lse, stats

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _index: Any, grad_score: Tensor | None, _rank: Any, _offset: Any, *grads: Tensor | None
    ) -> Any:
        logits, index, lse, alive = ctx.saved_tensors
        grad_lse = grads[0] if ctx.has_lse else None
        grad_stats = grads[1] if ctx.has_stats else None
        grad_logits = torch.ops.learning_at_home.route_backward(
            _contiguous(grad_score),
            _contiguous(grad_lse),
            _contiguous(grad_stats),
            logits,
            ctx.grid,
            index,
            lse,
            alive=alive,
        )
        return (grad_logits, *[None] * 8)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rank: Tensor, offset: Tensor, align: int) -> Any:
        rows, source = torch.ops.learning_at_home.dispatch(x, index, rank, offset, align=align)
        ctx.save_for_backward(index, rank, offset)
        ctx.mark_non_differentiable(source)
        return rows, source

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, _source: Any) -> Any:
        grad_x = torch.ops.learning_at_home.dispatch_backward(grad_rows.contiguous(), *ctx.saved_tensors)
        return grad_x, None, None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, score: Tensor, *rest: Any) -> Any:
        index, rank, offset, ok, normalize, residual = rest
        out, weight = torch.ops.learning_at_home.combine(
            rows, score, index, rank, offset, ok=ok, normalize=normalize, residual=residual
        )
        ctx.normalize = normalize
        ctx.save_for_backward(rows, score, weight, index, rank, offset, ok)
        ctx.mark_non_differentiable(weight)
        return out, weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _weight: Any) -> Any:
        *saved, ok = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows, grad_score = torch.ops.learning_at_home.combine_backward(
            grad, *saved, ok=ok, normalize=ctx.normalize
        )
        return grad_rows, grad_score, None, None, None, None, None, grad if ctx.needs_input_grad[7] else None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.learning_at_home.swiglu(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.ops.learning_at_home.swiglu_backward(grad.contiguous(), x, weight)
        return grad_x, None if weight is None else grad_weight


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _flatten(x: Tensor) -> Tensor:
    """[T, ...] -> contiguous [T, H]; the tensor itself if it is that already."""
    return x.contiguous() if x.dim() == 2 else x.reshape(x.size(0), math.prod(x.shape[1:])).contiguous()


def _grid(grid: Sequence[int]) -> list[int]:
    sizes = [int(size) for size in grid]
    if not 1 <= len(sizes) <= MAX_GRID_DIMS or min(sizes) < 1 or math.prod(sizes) > MAX_EXPERTS:
        raise ValueError(
            f"grid: expected 1 to {MAX_GRID_DIMS} positive sizes with a product of at most {MAX_EXPERTS}, got {sizes}"
        )
    return sizes


def _within(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected {low} {'or more' if high is None else f'to {high}'}, got {value}")


def _tensor(
    name: str,
    x: Any,
    dtypes: tuple[torch.dtype, ...] | None,
    shape: tuple[Any, ...],
    like: Tensor | None = None,
) -> None:
    """Check type, dtype, shape and device. Letters in `shape` stand for any size, a final ... for any further
    sizes.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if dtypes is not None and x.dtype not in dtypes:
        raise TypeError(f"{name}: expected {_either(dtypes)}, got {x.dtype}")
    sizes = shape[:-1] if shape[-1] is ... else shape
    fits = x.dim() >= len(sizes) if shape[-1] is ... else x.dim() == len(sizes)
    if not fits or any(isinstance(want, int) and want != got for want, got in zip(sizes, x.shape, strict=False)):
        raise ValueError(f"{name}: expected shape {_shown(shape)}, got {_shown(x.shape)}")
    if like is not None and x.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, got {x.device}")


def _either(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)


def _shown(shape: Sequence[Any]) -> str:
    return f"[{', '.join('...' if size is ... else str(size) for size in shape)}]"


def _plan(like: Any, index: Any, rank: Any, offset: Any) -> None:
    """Check the three tensors that say where rows are."""
    like = like if isinstance(like, Tensor) else None
    _tensor("index", index, (torch.int32,), ("T", "k"), like)
    _tensor("rank", rank, (torch.int32,), tuple(index.shape), like)
    _tensor("offset", offset, (torch.int32,), ("E + 1",), like)
    for name, x in (("index", index), ("rank", rank), ("offset", offset)):
        if not x.is_contiguous() or (name == "offset" and x.numel() < 2):
            raise ValueError(
                f"{name}: expected the contiguous tensor that route_grid returns, got shape {_shown(x.shape)}"
            )
