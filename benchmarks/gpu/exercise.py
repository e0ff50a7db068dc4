"""Every op once, forward and backward, in each dtype and in odd sizes: `python -m benchmarks.gpu.exercise [DEVICE]`.

Short, to run under compute-sanitizer: the device must find what the CPU finds. `--beyond-int32` instead moves more than
2**31 elements.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from learning_at_home import ops

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = ((37, (9,), 3, {}), (130, (7, 9), 4, {"capacity": 9, "align": 8}), (65, (3, 4, 5), 8, {"beam": 3}))


def mixture(
    device: str, dtype: torch.dtype, tokens: int, grid: tuple[int, ...], k: int, options: dict[str, Any]
) -> list[Tensor]:
    """Route, dispatch, swiglu and combine with dead experts, lost rows and a residual, and all gradients."""
    generator = torch.Generator().manual_seed(tokens)
    experts = int(torch.tensor(grid).prod())

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, kind).requires_grad_()

    alive = ops.alive_bitmap((torch.rand(experts, generator=generator) < 0.7).to(device), experts)
    logits, x, residual = normal(tokens, sum(grid), kind=torch.float32), normal(tokens, 66), normal(tokens, 33)
    route = ops.route_grid(logits, grid, k, alive=alive, want_stats=True, **options)
    plan = (route.index, route.rank, route.offset)
    rows, source = ops.dispatch(x, *plan, align=options.get("align", 1))
    factor = normal(len(rows), kind=torch.float32)
    gated = ops.swiglu(rows, factor)
    ok = (torch.rand(len(rows), generator=generator) < 0.8).to(device) & (source >= 0)
    outs = []
    for normalize, score in (("softmax", route.score), ("sum", route.score.abs()), ("none", route.score)):
        outs.append(ops.combine(gated, score, *plan, ok=ok, normalize=normalize, residual=residual)[0])
    grads = [torch.linspace(-1, 1, out.numel(), device=device).view_as(out).to(out.dtype) for out in outs]
    loss = route.lse.square().sum() + (route.stats[1] * torch.arange(experts, device=device)).sum()
    leaves = (logits, x, residual, factor)
    found = torch.autograd.grad([*outs, loss], leaves, [*grads, torch.ones_like(loss)])
    return [*plan, source, route.score, route.lse, route.stats, *outs, *found]


def grouped(device: str, dtype: torch.dtype, tokens: int) -> list[Tensor]:
    """route with sigmoids, a bias and groups; its layout once more by plan; the gradient of scores and statistics."""
    generator = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, 64, generator=generator).to(device, dtype).requires_grad_()
    bias = torch.randn(64, generator=generator).to(device)
    route = ops.route(
        logits, 6, bias=bias, score="sigmoid", groups=8, top_groups=3, capacity=9, align=4, want_stats=True
    )
    plan = ops.plan(route.index, 64, capacity=9, align=4)
    factor = torch.linspace(-1, 1, 6, device=device)
    loss = (route.score * factor).sum() + route.lse.sum() + route.stats[1].square().sum()
    return [route.index, *plan, route.rank, route.offset, route.score, *torch.autograd.grad(loss, logits)]


def quantized(device: str, dtype: torch.dtype, tokens: int) -> list[Tensor]:
    """Rows of 8 bits and back, whole rows and blocks."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 70, generator=generator).to(device, dtype)
    index = torch.randint(-1, 9, (tokens, 3), generator=generator, dtype=torch.int32).to(device)
    plan = (index, *ops.plan(index, 9, capacity=9)[:2])
    found = []
    for packed, block in ((torch.int8, 0), (torch.int8, 32), (torch.float8_e4m3fn, 0), (torch.float8_e4m3fn, 32)):
        rows, scale, source = ops.dispatch_quantized(x, *plan, dtype=packed, block=block)
        found += [rows.view(torch.int8), scale, source, ops.dequantize(rows, scale, dtype=dtype, block=block)]
    return found


def everything(
    device: str, dtype: torch.dtype, tokens: int, grid: tuple[int, ...], k: int, options: dict[str, Any]
) -> list[Tensor]:
    """All of the above."""
    whole = mixture(device, dtype, tokens, grid, k, options)
    return [*whole, *grouped(device, dtype, tokens), *quantized(device, dtype, tokens)]


def differing(device: str) -> list[str]:
    """What differs from the CPU: integers at all, floats by more than rounding."""
    wrong = []
    for dtype, tolerance in TOLERANCE.items():
        for tokens, grid, k, options in SHAPES:
            got, want = (everything(where, dtype, tokens, grid, k, options) for where in (device, "cpu"))
            for i, pair in enumerate(zip(got, want, strict=True)):
                x, y = (side.detach().cpu().double() for side in pair)
                if not (x - y).norm() <= (tolerance if got[i].is_floating_point() else 0.0) * y.norm():
                    wrong.append(f"{dtype}, grid {grid}, result {i}")
    return wrong


def beyond_int32(device: str, tokens: int = 65536, hidden: int = 4608, k: int = 8) -> int:
    """Move, mix and move back R * H elements; returns how many. An AssertionError names what went wrong."""
    torch.manual_seed(0)
    x = torch.randn(tokens, hidden, device=device).bfloat16()
    route = ops.route_grid(torch.randn(tokens, 64, device=device), (64,), k)
    plan = (route.index, route.rank, route.offset)
    rows, source = ops.dispatch(x, *plan)
    token = source.long() // k
    out, weight = ops.combine(rows, route.score, *plan)
    raw = torch.ops.learning_at_home
    grad_rows, _ = raw.combine_backward(x, rows, route.score, weight, *plan)
    grad_x = raw.dispatch_backward(rows, *plan)
    gated = ops.swiglu(rows)
    flat = weight.flatten()
    for part in torch.arange(len(rows), device=device).chunk(64):
        of = x[token[part]].float()
        assert torch.equal(rows[part].float(), of), f"dispatch: rows {int(part[0])} and further"
        gate, up = of.chunk(2, dim=1)
        _near("swiglu", gated[part], torch.nn.functional.silu(gate) * up)
        _near("combine_backward", grad_rows[part], flat[source[part].long(), None] * of)
    for part in torch.arange(tokens, device=device).chunk(16):
        _near("combine", out[part], x[part].float())  # all rows of a token are the token
        _near("dispatch_backward", grad_x[part], k * x[part].float())
    return rows.numel()


def _near(name: str, got: Tensor, want: Tensor) -> None:
    error = ((got.float() - want).norm() / want.norm()).item()
    assert error < 0.01, f"{name}: {error:.3g} of the norm"


def main(device: str, large: bool) -> int:
    """Run it; the status says whether something differs."""
    if large:
        print(f"{beyond_int32(device):,} elements moved, mixed and moved back")
        return 0
    wrong = differing(device)
    print("\n".join(f"differs from the CPU: {name}" for name in wrong) or "every op agrees with the CPU")
    return 1 if wrong else 0


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    sys.exit(main(names[0] if names else "cuda", "--beyond-int32" in sys.argv))
